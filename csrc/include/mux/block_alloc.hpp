// Leases runs of head units to owners. Knows no CUDA, no Python and no memory, only numbers.
//
// One caller at a time: the unit scheduler. The rules are those of
// mux_runtime.kvpool.allocator, whose reference gives the same ids for the same calls.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "mux/free_map.hpp"

namespace mux {

// Units or runs are lacking; nothing was taken.
struct Exhausted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A rule of the pool is broken: a bug of the caller or of ours; nothing was changed.
struct InvariantBroken : std::logic_error {
  using std::logic_error::logic_error;
};

// A row of a model: `layers` layers of `layer_runs` runs of `run_units` units.
struct RowShape {
  std::uint32_t layers;
  std::uint32_t layer_runs;
  std::uint32_t run_units;

  std::uint32_t runs() const { return layers * layer_runs; }
};

using Run = std::uint32_t;    // index of a run's first unit
using Owner = std::uint32_t;  // from add_owner; 0 is nobody

class BlockAllocator {
 public:
  explicit BlockAllocator(std::uint32_t total_units);

  // A new owner. Owners of one member share that member's extents.
  Owner add_owner(std::uint32_t member);

  std::uint32_t total_units() const { return free_.total_units(); }
  std::uint32_t free_units() const { return total_units() - owned_ - reserved_; }
  std::uint32_t owned_units() const { return owned_; }
  std::uint32_t reserved_units() const { return reserved_; }
  std::uint32_t used(Owner owner) const { return owners_.at(owner).used; }

  bool can_lease(RowShape shape, std::uint32_t rows) const;
  // The runs of `rows` rows, row by row; all or Exhausted.
  std::vector<Run> lease(Owner owner, RowShape shape, std::uint32_t rows);
  void free(std::span<const Run> runs, std::uint32_t run_units);
  void retag(std::span<const Run> runs, std::uint32_t run_units, Owner owner);
  // Frees all runs of `owner` and answers how many units those were.
  std::uint32_t reclaim(Owner owner);

  std::vector<Span> reserve(Owner owner, std::uint32_t units);
  std::vector<Span> release(Owner owner);
  std::vector<Span> free_spans() const;

  // Throws InvariantBroken unless free + owned + reserved = all and each unit has one owner.
  void audit() const;

 private:
  struct OwnerRecord {
    std::uint32_t member = 0;
    std::uint32_t used = 0;
    std::vector<Span> reserved;
  };
  struct RunRecord {
    Owner owner = 0;
    std::uint32_t units = 0;
  };
  // What a member claims for one layer. `open` are its extents with room for `run_units`, sorted.
  struct Lane {
    std::uint32_t run_units = 0;
    std::vector<std::uint32_t> open;
  };
  using LaneId = std::uint32_t;
  static constexpr LaneId kUnclaimed = UINT32_MAX;

  LaneId lane_of(std::uint32_t member, std::uint32_t layer, std::uint32_t run_units);
  void reopen(LaneId id, std::uint32_t run_units);
  bool lease_by_lane(Owner owner, RowShape shape, std::vector<Run>& runs);
  bool lease_packed(Owner owner, RowShape shape, std::vector<Run>& runs);
  Run next_start(LaneId lane, std::uint32_t run_units, std::uint32_t& cursor);

  void take(Owner owner, Run start, std::uint32_t units);
  void give_back(Run start);
  void occupy(std::uint32_t start, std::uint32_t units);
  void vacate(std::uint32_t start, std::uint32_t units);
  void refresh_lanes(std::uint32_t start, std::uint32_t units);
  void check(std::span<const Run> runs, std::uint32_t run_units);

  void audit_runs() const;
  void audit_extents() const;

  FreeMap free_;
  std::vector<RunRecord> runs_;    // by first unit
  std::vector<LaneId> claims_;     // by extent
  std::vector<Lane> lanes_;
  std::vector<std::vector<LaneId>> member_lanes_;  // by member and layer
  std::vector<OwnerRecord> owners_;
  std::uint32_t owned_ = 0;
  std::uint32_t reserved_ = 0;
};

}  // namespace mux
