// Which head units are free, with the questions an allocator asks. Not safe for threads.
#pragma once

#include <cstdint>
#include <vector>

#include "mux/index_set.hpp"

namespace mux {

constexpr std::uint32_t kExtentUnits = 128;

struct Span {
  std::uint32_t start;
  std::uint32_t units;
};

class FreeMap {
 public:
  static constexpr std::uint32_t kNone = IndexSet::kNone;

  // All units start free.
  explicit FreeMap(std::uint32_t total_units);

  std::uint32_t total_units() const { return total_; }
  std::uint32_t extents() const { return static_cast<std::uint32_t>(room_.size()); }
  // Free units of an extent; a last, shorter extent is never whole.
  std::uint32_t room(std::uint32_t extent) const { return room_[extent]; }
  bool is_whole(std::uint32_t extent) const { return room_[extent] == kExtentUnits; }
  const IndexSet& whole() const { return whole_; }
  bool is_free(std::uint32_t unit) const { return (words_[unit / 64] >> (unit % 64) & 1) != 0; }

  void occupy(std::uint32_t start, std::uint32_t units) { set(start, units, false); }
  void vacate(std::uint32_t start, std::uint32_t units) { set(start, units, true); }

  // The lowest start of a free run within an extent, or kNone. A power-of-two run starts at a
  // multiple of its size.
  std::uint32_t fit(std::uint32_t extent, std::uint32_t units) const;
  // The lowest gap of at least `units` that begins at or after `from`, where a gap that `from`
  // cuts begins; start kNone when there is none.
  Span gap(std::uint32_t from, std::uint32_t units = 1) const;
  // The highest free unit, or kNone.
  std::uint32_t highest() const;
  // Whether `runs` disjoint runs of `units` lie free.
  bool holds(std::uint32_t units, std::uint64_t runs) const;

 private:
  void set(std::uint32_t start, std::uint32_t units, bool free);
  void count(std::uint32_t extent, std::uint32_t units, bool free);
  void measure() const;
  std::uint32_t next_candidate(std::uint32_t extent, std::uint32_t units) const;
  std::uint32_t next_free(std::uint32_t from) const;
  std::uint32_t next_occupied(std::uint32_t from) const;

  // Lengths of an extent's gaps: at its start, at its end, the longest. At most kExtentUnits each.
  struct Gaps {
    std::uint8_t first = 0;
    std::uint8_t last = 0;
    std::uint8_t longest = 0;
    bool stale = false;
  };

  std::uint32_t total_;
  std::vector<std::uint64_t> words_;  // a set bit is a free unit
  std::vector<std::uint32_t> room_;
  IndexSet whole_;  // extents without an occupied unit
  IndexSet roomy_;  // extents with a free unit
  // Measured only when a search needs them: leases that stay in their extents never do.
  mutable std::vector<Gaps> gaps_;
  mutable std::vector<std::uint32_t> stale_;  // extents whose gaps changed since
};

}  // namespace mux
