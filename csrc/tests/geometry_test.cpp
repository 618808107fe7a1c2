#include "check.hpp"
#include "mux/geometry.hpp"

// bf16, head_dim 128, 16 KiB units, 64 GiB arena: 8,192 elements a unit, 4,194,304 units.
constexpr std::int64_t kArenaUnits = 4'194'304;

CASE(grouped_heads_lie_where_strides_say) {
  constexpr mux::RunGeometry gqa{.kv_heads = 8, .head_dim = 128, .unit_elements = 8192};
  static_assert(gqa.starts(kArenaUnits) == 4'194'289);
  static_assert(gqa.k_offset(1008, 3, 17) == 8'308'864);
  static_assert(gqa.v_offset(1008, 3, 17) == 8'317'056);
  CHECK(gqa.k_offset(1008, 3, 17) / 8192 == 1014);
}

CASE(a_head_each_lies_where_strides_say) {
  constexpr mux::RunGeometry mha{.kv_heads = 32, .head_dim = 128, .unit_elements = 8192};
  static_assert(mha.starts(kArenaUnits) == 4'194'241);
  static_assert(mha.k_offset(2048, 31, 17) == 17'287'296);
  static_assert(mha.v_offset(2048, 31, 17) == 17'295'488);
  CHECK(mha.v_offset(2048, 31, 17) / 8192 == 2111);
}

CASE(offsets_need_64_bits) {
  constexpr mux::RunGeometry gqa{.kv_heads = 8, .head_dim = 128, .unit_elements = 8192};
  static_assert(gqa.k_offset(kArenaUnits - 16, 0, 0) > std::int64_t{1} << 32);
  CHECK(gqa.starts(15) == 0);
}
