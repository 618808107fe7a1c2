#include "mux/block_alloc.hpp"

#include <algorithm>
#include <random>

#include "check.hpp"

using mux::BlockAllocator;
using mux::Run;
using mux::RowShape;

constexpr RowShape kTwoLayers{.layers = 2, .layer_runs = 1, .run_units = 16};

CASE(layers_lie_in_extents_of_their_own) {
  BlockAllocator pool(4 * 128);
  const mux::Owner owner = pool.add_owner(0);
  CHECK((pool.lease(owner, kTwoLayers, 2) == std::vector<Run>{0, 128, 16, 144}));
  pool.audit();
}

CASE(ten_heads_fit_six_times_into_an_extent) {
  BlockAllocator pool(2 * 128);
  const mux::Owner owner = pool.add_owner(0);
  const RowShape shape{.layers = 1, .layer_runs = 1, .run_units = 20};
  CHECK((pool.lease(owner, shape, 7) == std::vector<Run>{0, 20, 40, 60, 80, 100, 128}));
}

CASE(phases_of_a_member_share_extents_and_members_do_not) {
  BlockAllocator pool(4 * 128);
  const RowShape shape{.layers = 1, .layer_runs = 1, .run_units = 16};
  const auto prefill = pool.add_owner(7), decode = pool.add_owner(7), other = pool.add_owner(8);
  CHECK(pool.lease(prefill, shape, 1)[0] == 0);
  CHECK(pool.lease(decode, shape, 1)[0] == 16);
  CHECK(pool.lease(other, shape, 1)[0] == 128);
}

CASE(runs_wider_than_an_extent_are_leased) {
  BlockAllocator pool(400);
  const mux::Owner owner = pool.add_owner(0);
  const RowShape wide{.layers = 1, .layer_runs = 1, .run_units = 200};
  CHECK((pool.lease(owner, wide, 2) == std::vector<Run>{0, 200}));
  CHECK_THROWS(mux::Exhausted, pool.lease(owner, wide, 1));
  pool.audit();
}

CASE(a_free_that_fails_frees_nothing) {
  BlockAllocator pool(256);
  const mux::Owner owner = pool.add_owner(0);
  const auto runs = pool.lease(owner, kTwoLayers, 1);
  const std::vector<Run> twice{runs[0], runs[1], runs[0]};
  CHECK_THROWS(mux::InvariantBroken, pool.free(twice, 16));
  CHECK_THROWS(mux::InvariantBroken, pool.free(runs, 8));
  CHECK(pool.owned_units() == 32);
  pool.audit();
  pool.free(runs, 16);
  CHECK(pool.free_units() == 256);
}

CASE(an_unknown_owner_is_refused) {
  BlockAllocator pool(256);
  CHECK_THROWS(std::out_of_range, pool.lease(9, kTwoLayers, 1));
  CHECK(pool.free_units() == 256);
}

CASE(random_leases_and_frees_keep_every_rule) {
  std::mt19937 random(20240402);
  BlockAllocator pool(5 * 128 + 77);
  const RowShape shapes[] = {{2, 1, 4}, {3, 1, 10}, {1, 3, 2}, {1, 1, 150}};
  const mux::Owner owners[] = {pool.add_owner(0), pool.add_owner(1), pool.add_owner(1)};
  std::vector<std::pair<std::vector<Run>, std::uint32_t>> held;
  for (int step = 0; step < 1500; ++step) {
    const RowShape shape = shapes[random() % 4];
    const std::uint32_t rows = random() % 4;
    const mux::Owner owner = owners[random() % 3];
    switch (random() % 8) {
      case 0: (void)pool.release(owner); break;
      case 1: if (pool.free_units() > 150) (void)pool.reserve(owner, random() % 150); break;
      case 2: case 3: case 4:
        if (pool.can_lease(shape, rows)) {
          held.emplace_back(pool.lease(owner, shape, rows), shape.run_units);
        } else {
          CHECK_THROWS(mux::Exhausted, pool.lease(owner, shape, rows));
        }
        break;
      default:
        if (held.empty()) break;
        std::swap(held[random() % held.size()], held.back());
        pool.retag(held.back().first, held.back().second, owner);
        pool.free(held.back().first, held.back().second);
        held.pop_back();
    }
    pool.audit();
  }
}
