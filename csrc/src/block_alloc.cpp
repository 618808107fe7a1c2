#include "mux/block_alloc.hpp"

#include <algorithm>
#include <utility>

namespace mux {
namespace {

// Set on a run's size while `check` has seen it, to find runs named twice.
constexpr std::uint32_t kSeen = std::uint32_t{1} << 31;

std::vector<Span> merged(std::vector<Span> spans) {
  std::ranges::sort(spans, {}, &Span::start);
  std::vector<Span> out;
  for (const Span& span : spans) {
    if (!out.empty() && out.back().start + out.back().units == span.start) {
      out.back().units += span.units;
    } else {
      out.push_back(span);
    }
  }
  return out;
}

// Makes `item` a member of a sorted vector, or no member.
void set_member(std::vector<std::uint32_t>& sorted, std::uint32_t item, bool member) {
  const auto at = std::ranges::lower_bound(sorted, item);
  const bool found = at != sorted.end() && *at == item;
  if (member && !found) sorted.insert(at, item);
  if (!member && found) sorted.erase(at);
}

}  // namespace

BlockAllocator::BlockAllocator(std::uint32_t total_units)
    : free_(total_units), runs_(total_units), claims_(free_.extents(), kUnclaimed), owners_(1) {}

Owner BlockAllocator::add_owner(std::uint32_t member) {
  owners_.push_back({.member = member, .used = 0, .reserved = {}});
  return static_cast<Owner>(owners_.size() - 1);
}

bool BlockAllocator::can_lease(RowShape shape, std::uint32_t rows) const {
  const std::uint64_t runs = std::uint64_t{rows} * shape.runs();
  return runs * shape.run_units <= free_units() && free_.holds(shape.run_units, runs);
}

std::vector<Run> BlockAllocator::lease(Owner owner, RowShape shape, std::uint32_t rows) {
  const std::uint64_t count = std::uint64_t{rows} * shape.runs();
  if (count * shape.run_units > free_units()) throw Exhausted("fewer units are free");
  std::vector<Run> runs(count);
  if (!lease_by_lane(owner, shape, runs) && !lease_packed(owner, shape, runs)) {
    throw Exhausted("fewer runs of this size are free");
  }
  return runs;
}

// Rules 1 to 3. False, with nothing taken, when they get stuck.
bool BlockAllocator::lease_by_lane(Owner owner, RowShape shape, std::vector<Run>& runs) {
  const std::uint32_t member = owners_.at(owner).member;
  std::uint32_t cursor = 0;
  for (std::size_t at = 0; at < runs.size(); ++at) {
    const auto layer = static_cast<std::uint32_t>(at / shape.layer_runs % shape.layers);
    const LaneId lane = lane_of(member, layer, shape.run_units);
    runs[at] = next_start(lane, shape.run_units, cursor);
    if (runs[at] == FreeMap::kNone) {
      while (at-- > 0) give_back(runs[at]);
      return false;
    }
    take(owner, runs[at], shape.run_units);
  }
  return true;
}

// Rule 3 alone, which wastes least. False, with nothing taken, when even that does not hold them.
bool BlockAllocator::lease_packed(Owner owner, RowShape shape, std::vector<Run>& runs) {
  if (!free_.holds(shape.run_units, runs.size())) return false;
  std::uint32_t cursor = 0;
  for (Run& run : runs) {
    run = free_.gap(cursor, shape.run_units).start;
    take(owner, run, shape.run_units);
    cursor = run + shape.run_units;
  }
  return true;
}

// Where the lane's next run goes, or kNone. May claim an extent for it. Between frees the lowest
// gap of one size only moves up: `cursor` remembers it.
Run BlockAllocator::next_start(LaneId id, std::uint32_t run_units, std::uint32_t& cursor) {
  for (const std::uint32_t extent : lanes_[id].open) {
    const Run start = free_.fit(extent, run_units);
    if (start != FreeMap::kNone) return start;
  }
  if (!free_.whole().empty() && run_units <= kExtentUnits) {
    const std::uint32_t extent = free_.whole().first();
    claims_[extent] = id;
    return extent * kExtentUnits;
  }
  cursor = free_.gap(cursor, run_units).start;
  return cursor;
}

void BlockAllocator::free(std::span<const Run> runs, std::uint32_t run_units) {
  check(runs, run_units);
  for (const Run start : runs) give_back(start);
}

void BlockAllocator::retag(std::span<const Run> runs, std::uint32_t run_units, Owner owner) {
  OwnerRecord& to = owners_.at(owner);
  check(runs, run_units);
  for (const Run start : runs) {
    owners_[runs_[start].owner].used -= run_units;
    to.used += run_units;
    runs_[start].owner = owner;
  }
}

std::uint32_t BlockAllocator::reclaim(Owner owner) {
  const std::uint32_t units = owners_.at(owner).used;
  for (Run start = 0; start < total_units() && owners_[owner].used > 0; ++start) {
    if (runs_[start].owner == owner) give_back(start);
  }
  return units;
}

std::vector<Span> BlockAllocator::reserve(Owner owner, std::uint32_t units) {
  OwnerRecord& record = owners_.at(owner);
  if (units > free_units()) throw Exhausted("fewer units are free");
  std::vector<Span> taken;
  for (std::uint32_t left = units; left > 0; left -= taken.back().units) {
    const bool by_extent = left >= kExtentUnits && !free_.whole().empty();
    taken.push_back(by_extent ? Span{free_.whole().last() * kExtentUnits, kExtentUnits}
                              : Span{free_.highest(), 1});
    occupy(taken.back().start, taken.back().units);
  }
  reserved_ += units;
  taken = merged(std::move(taken));
  record.reserved.insert(record.reserved.end(), taken.begin(), taken.end());
  return taken;
}

std::vector<Span> BlockAllocator::release(Owner owner) {
  const std::vector<Span> spans = merged(std::exchange(owners_.at(owner).reserved, {}));
  for (const Span& span : spans) {
    vacate(span.start, span.units);
    reserved_ -= span.units;
  }
  return spans;
}

std::vector<Span> BlockAllocator::free_spans() const {
  std::vector<Span> spans;
  for (Span gap = free_.gap(0); gap.start != FreeMap::kNone;
       gap = free_.gap(gap.start + gap.units)) {
    spans.push_back(gap);
  }
  return spans;
}

BlockAllocator::LaneId BlockAllocator::lane_of(std::uint32_t member, std::uint32_t layer,
                                               std::uint32_t run_units) {
  if (member >= member_lanes_.size()) member_lanes_.resize(member + 1);
  std::vector<LaneId>& lanes = member_lanes_[member];
  while (layer >= lanes.size()) {
    lanes.push_back(static_cast<LaneId>(lanes_.size()));
    lanes_.push_back({.run_units = run_units, .open = {}});
  }
  if (lanes_[lanes[layer]].run_units != run_units) reopen(lanes[layer], run_units);
  return lanes[layer];
}

// A member that comes back with another geometry finds its extents by the new size.
void BlockAllocator::reopen(LaneId id, std::uint32_t run_units) {
  lanes_[id] = {.run_units = run_units, .open = {}};
  for (std::uint32_t extent = 0; extent < claims_.size(); ++extent) {
    if (claims_[extent] == id && free_.room(extent) >= run_units) {
      lanes_[id].open.push_back(extent);
    }
  }
}

void BlockAllocator::take(Owner owner, Run start, std::uint32_t units) {
  runs_[start] = {.owner = owner, .units = units};
  owners_[owner].used += units;
  owned_ += units;
  occupy(start, units);
}

void BlockAllocator::give_back(Run start) {
  const RunRecord run = std::exchange(runs_[start], {});
  owners_[run.owner].used -= run.units;
  owned_ -= run.units;
  vacate(start, run.units);
}

void BlockAllocator::occupy(std::uint32_t start, std::uint32_t units) {
  free_.occupy(start, units);
  refresh_lanes(start, units);
}

void BlockAllocator::vacate(std::uint32_t start, std::uint32_t units) {
  free_.vacate(start, units);
  refresh_lanes(start, units);
}

// After units changed: a wholly free extent is nobody's, a roomy one is open, another is not.
void BlockAllocator::refresh_lanes(std::uint32_t start, std::uint32_t units) {
  for (std::uint32_t extent = start / kExtentUnits; extent <= (start + units - 1) / kExtentUnits;
       ++extent) {
    if (claims_[extent] == kUnclaimed) continue;
    Lane& lane = lanes_[claims_[extent]];
    const bool whole = free_.is_whole(extent);
    set_member(lane.open, extent, !whole && free_.room(extent) >= lane.run_units);
    if (whole) claims_[extent] = kUnclaimed;
  }
}

// Throws unless each is a leased run of that size, named once. Changes nothing when it throws.
void BlockAllocator::check(std::span<const Run> runs, std::uint32_t run_units) {
  std::size_t seen = 0;
  while (seen < runs.size() && runs[seen] < runs_.size() &&
         runs_[runs[seen]].units == run_units) {
    runs_[runs[seen++]].units |= kSeen;
  }
  for (std::size_t at = 0; at < seen; ++at) runs_[runs[at]].units &= ~kSeen;
  if (seen < runs.size()) {
    throw InvariantBroken("run " + std::to_string(runs[seen]) + " of " +
                          std::to_string(run_units) + " units is not leased, or is named twice");
  }
}

}  // namespace mux
