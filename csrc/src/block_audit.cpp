// The allocator's own account of itself, written without its bookkeeping: from runs up.
#include <algorithm>
#include <numeric>

#include "mux/block_alloc.hpp"

namespace mux {
namespace {

void require(bool holds, const std::string& rule) {
  if (!holds) throw InvariantBroken("KV pool: " + rule);
}

// Marks units as taken; two owners of one unit are a broken rule.
void paint(std::vector<bool>& taken, std::uint32_t start, std::uint32_t units) {
  for (std::uint32_t unit = start; unit < start + units; ++unit) {
    require(unit < taken.size() && !taken[unit], "unit " + std::to_string(unit) +
                                                     " has two owners, or lies outside");
    taken[unit] = true;
  }
}

}  // namespace

void BlockAllocator::audit() const {
  audit_runs();
  audit_extents();
}

void BlockAllocator::audit_runs() const {
  std::vector<bool> taken(total_units());
  std::vector<std::uint32_t> used(owners_.size());
  for (Run start = 0; start < total_units(); ++start) {
    if (runs_[start].units == 0) continue;
    paint(taken, start, runs_[start].units);
    used.at(runs_[start].owner) += runs_[start].units;
  }
  std::uint32_t reserved = 0;
  for (Owner owner = 0; owner < owners_.size(); ++owner) {
    require(used[owner] == owners_[owner].used, "an owner's units are miscounted");
    for (const Span& span : owners_[owner].reserved) {
      paint(taken, span.start, span.units);
      reserved += span.units;
    }
  }
  require(reserved == reserved_, "the count of reserved units is wrong");
  require(std::accumulate(used.begin(), used.end(), std::uint32_t{0}) == owned_,
          "the count of owned units is wrong");
  for (std::uint32_t unit = 0; unit < total_units(); ++unit) {
    require(free_.is_free(unit) != taken[unit],
            "unit " + std::to_string(unit) + " is neither free nor owned, or both");
  }
}

void BlockAllocator::audit_extents() const {
  for (std::uint32_t extent = 0; extent < free_.extents(); ++extent) {
    std::uint32_t room = 0;
    const std::uint32_t begin = extent * kExtentUnits;
    for (std::uint32_t unit = begin; unit < std::min(begin + kExtentUnits, total_units()); ++unit) {
      room += free_.is_free(unit) ? 1 : 0;
    }
    const std::string name = "extent " + std::to_string(extent);
    require(room == free_.room(extent), name + " miscounts its free units");
    require(free_.is_whole(extent) == free_.whole().contains(extent), name + " is misfiled");
    const LaneId id = claims_[extent];
    require(id == kUnclaimed || !free_.is_whole(extent), name + " is free and claimed");
    const bool open = id != kUnclaimed && std::ranges::binary_search(lanes_[id].open, extent);
    require(open == (id != kUnclaimed && room >= lanes_[id].run_units), name + " is misfiled");
  }
}

}  // namespace mux
