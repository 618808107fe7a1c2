#include "mux/free_map.hpp"

#include <algorithm>
#include <bit>

namespace mux {
namespace {

__extension__ typedef unsigned __int128 Mask;  // one extent

// Bits at multiples of `units`, a power of two.
Mask multiples_of(std::uint32_t units) {
  Mask mask = 1;
  for (std::uint32_t at = units; at < kExtentUnits; at *= 2) mask |= mask << at;
  return mask;
}

// Bits where `units` set bits begin.
Mask starts_of_runs(Mask free, std::uint32_t units) {
  std::uint32_t length = 1;
  for (; 2 * length <= units; length *= 2) free &= free >> length;
  return length < units ? free & (free >> (units - length)) : free;
}

std::uint32_t lowest(Mask mask) {
  const auto low = static_cast<std::uint64_t>(mask);
  const auto high = static_cast<std::uint64_t>(mask >> 64);
  return static_cast<std::uint32_t>(low != 0 ? std::countr_zero(low)
                                             : 64 + std::countr_zero(high));
}

// How many set bits lie from bit 0 on.
std::uint32_t leading(Mask mask) { return mask == ~Mask{0} ? kExtentUnits : lowest(~mask); }

}  // namespace

FreeMap::FreeMap(std::uint32_t total_units)
    : total_(total_units),
      words_((total_units + kExtentUnits - 1) / kExtentUnits * 2),
      room_(words_.size() / 2),
      whole_(extents()),
      roomy_(extents()),
      gaps_(extents()) {
  if (total_units > 0) vacate(0, total_units);
}

std::uint32_t FreeMap::fit(std::uint32_t extent, std::uint32_t units) const {
  if (room_[extent] < units) return kNone;
  const Mask free = Mask{words_[2 * extent + 1]} << 64 | words_[2 * extent];
  Mask starts = starts_of_runs(free, units);
  if (std::has_single_bit(units)) starts &= multiples_of(units);
  return starts == 0 ? kNone : extent * kExtentUnits + lowest(starts);
}

Span FreeMap::gap(std::uint32_t from, std::uint32_t units) const {
  measure();
  for (std::uint32_t extent = next_candidate(from / kExtentUnits, units); extent != kNone;
       extent = next_candidate(extent + 1, units)) {
    const std::uint32_t begin = std::max(from, extent * kExtentUnits);
    std::uint32_t start = next_free(begin);
    while (start != kNone && start / kExtentUnits == extent) {
      const std::uint32_t end = next_occupied(start);
      if (end - start >= units) return {start, end - start};
      start = next_free(end);
    }
  }
  return {kNone, 0};
}

// The next extent in which a gap of `units` may begin. Wider than an extent, it must at least run
// from the end of one through some of the next.
std::uint32_t FreeMap::next_candidate(std::uint32_t extent, std::uint32_t units) const {
  const std::uint32_t need = std::min(units, kExtentUnits + 1);
  for (extent = roomy_.first(extent); extent != kNone; extent = roomy_.first(extent + 1)) {
    const std::uint32_t next = extent + 1 < extents() ? gaps_[extent + 1].first : 0;
    if (gaps_[extent].longest >= need || gaps_[extent].last + next >= need) return extent;
  }
  return kNone;
}

// Measures the gaps of the extents that changed.
void FreeMap::measure() const {
  for (const std::uint32_t extent : stale_) {
    Mask free = Mask{words_[2 * extent + 1]} << 64 | words_[2 * extent];
    Gaps gaps{.first = static_cast<std::uint8_t>(leading(free))};
    for (std::uint32_t at = 0; free != 0;) {
      const std::uint32_t skipped = lowest(free), length = leading(free >> skipped);
      at += skipped + length;
      gaps.longest = std::max(gaps.longest, static_cast<std::uint8_t>(length));
      if (at == kExtentUnits) gaps.last = static_cast<std::uint8_t>(length);
      free = at == kExtentUnits ? 0 : free >> skipped >> length;
    }
    gaps_[extent] = gaps;
  }
  stale_.clear();
}

std::uint32_t FreeMap::highest() const {
  const std::uint32_t extent = roomy_.last();
  if (extent == kNone) return kNone;
  const std::uint32_t word = words_[2 * extent + 1] != 0 ? 2 * extent + 1 : 2 * extent;
  return word * 64 + 63 - static_cast<std::uint32_t>(std::countl_zero(words_[word]));
}

bool FreeMap::holds(std::uint32_t units, std::uint64_t runs) const {
  if (runs <= std::uint64_t{whole_.size()} * (kExtentUnits / units)) return true;
  std::uint64_t found = 0;
  for (Span gap = this->gap(0, units); gap.start != kNone && found < runs;
       gap = this->gap(gap.start + gap.units, units)) {
    found += gap.units / units;
  }
  return found >= runs;
}

void FreeMap::set(std::uint32_t start, std::uint32_t units, bool free) {
  for (const std::uint32_t end = start + units; start < end;) {
    const std::uint32_t part = std::min(end - start, 64 - start % 64);
    const std::uint64_t mask = (~std::uint64_t{0} >> (64 - part)) << (start % 64);
    words_[start / 64] = free ? words_[start / 64] | mask : words_[start / 64] & ~mask;
    count(start / kExtentUnits, part, free);
    start += part;
  }
}

void FreeMap::count(std::uint32_t extent, std::uint32_t units, bool free) {
  if (!gaps_[extent].stale) stale_.push_back(extent);
  gaps_[extent].stale = true;
  if (is_whole(extent)) whole_.erase(extent);
  room_[extent] = free ? room_[extent] + units : room_[extent] - units;
  if (is_whole(extent)) whole_.insert(extent);
  if (room_[extent] == 0) {
    roomy_.erase(extent);
  } else {
    roomy_.insert(extent);
  }
}

std::uint32_t FreeMap::next_free(std::uint32_t from) const {
  if (from >= total_) return kNone;
  std::size_t word = from / 64;
  std::uint64_t rest = words_[word] & (~std::uint64_t{0} << (from % 64));
  while (rest == 0) {
    if (++word % 2 == 0) {
      const std::uint32_t extent = roomy_.first(static_cast<std::uint32_t>(word / 2));
      if (extent == kNone) return kNone;
      word = std::size_t{2} * extent;
    }
    rest = words_[word];
  }
  return static_cast<std::uint32_t>(word * 64) + static_cast<std::uint32_t>(std::countr_zero(rest));
}

std::uint32_t FreeMap::next_occupied(std::uint32_t from) const {
  std::size_t word = from / 64;
  std::uint64_t rest = ~words_[word] & (~std::uint64_t{0} << (from % 64));
  while (rest == 0) {
    if (++word == words_.size()) return total_;
    rest = ~words_[word];
  }
  const auto at = static_cast<std::uint32_t>(word * 64) +
                  static_cast<std::uint32_t>(std::countr_zero(rest));
  return std::min(at, total_);
}

}  // namespace mux
