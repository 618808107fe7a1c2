// Where K and V of a model lie in an arena of head units. Owns nothing; any thread may call.
//
// A run is 2*kv_heads consecutive units in the order K0 V0 K1 V1 ..., named by its first unit.
// Seen through strides the arena is a paged cache of shape [starts, kv_heads, block_tokens,
// head_dim], K at the arena's start and V one unit further. That view overlaps itself; it is sound
// because leased runs are disjoint. Ids fit 32 bits, offsets do not.
#pragma once

#include <array>
#include <cstdint>

namespace mux {

struct RunGeometry {
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t unit_elements;  // bytes of a head unit / bytes of an element

  constexpr std::int64_t run_units() const { return 2 * kv_heads; }

  // Run starts in an arena, the view's first dimension; one more would leave the arena.
  constexpr std::int64_t starts(std::int64_t total_units) const {
    return total_units < run_units() ? 0 : total_units - run_units() + 1;
  }

  // Strides of the view, in elements; the same for K and V.
  constexpr std::array<std::int64_t, 4> strides() const {
    return {unit_elements, 2 * unit_elements, head_dim, 1};
  }

  // First element of K of one token of one head, counted from the arena's start.
  constexpr std::int64_t k_offset(std::int64_t run, std::int64_t head, std::int64_t token) const {
    return run * unit_elements + head * 2 * unit_elements + token * head_dim;
  }

  constexpr std::int64_t v_offset(std::int64_t run, std::int64_t head, std::int64_t token) const {
    return k_offset(run, head, token) + unit_elements;
  }
};

}  // namespace mux
