// Python's view of mux: numbers in, tuples out. Nothing here decides anything.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <vector>

#include "mux/block_alloc.hpp"
#include "mux/geometry.hpp"

namespace nb = nanobind;
using mux::BlockAllocator;
using mux::RowShape;

namespace {

RowShape shape_of(std::uint32_t layers, std::uint32_t layer_runs, std::uint32_t run_units) {
  if (layers == 0 || layer_runs == 0 || run_units == 0) {
    throw nb::value_error("layers, layer_runs and run_units start at 1");
  }
  return {layers, layer_runs, run_units};
}

nb::tuple rows_of(const std::vector<mux::Run>& runs, std::uint32_t width) {
  nb::object rows = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(runs.size() / width)));
  if (!rows.is_valid()) throw nb::python_error();
  for (std::size_t at = 0; at < runs.size(); at += width) {
    PyObject* row = PyTuple_New(width);
    if (row == nullptr) throw nb::python_error();
    PyTuple_SET_ITEM(rows.ptr(), static_cast<Py_ssize_t>(at / width), row);
    for (std::uint32_t run = 0; run < width; ++run) {
      PyObject* id = PyLong_FromUnsignedLong(runs[at + run]);
      if (id == nullptr) throw nb::python_error();
      PyTuple_SET_ITEM(row, run, id);
    }
  }
  return nb::borrow<nb::tuple>(rows);
}

// The runs of a sequence of rows, each of which must be `width` long.
std::vector<mux::Run> runs_of(nb::sequence rows, std::uint32_t width) {
  std::vector<mux::Run> runs;
  for (nb::handle row : rows) {
    if (nb::len(row) != width) {
      throw mux::InvariantBroken("a row has " + std::to_string(nb::len(row)) +
                                 " runs, its geometry " + std::to_string(width));
    }
    for (nb::handle run : row) {
      mux::Run id = 0;
      if (!nb::try_cast(run, id)) throw mux::InvariantBroken("a run id is no unit index");
      runs.push_back(id);
    }
  }
  return runs;
}

nb::tuple spans_of(const std::vector<mux::Span>& spans) {
  nb::list out;
  for (const mux::Span& span : spans) out.append(nb::make_tuple(span.start, span.units));
  return nb::tuple(out);
}

void bind_allocator(nb::module_& m) {
  nb::class_<BlockAllocator>(m, "BlockAllocator")
      .def(nb::init<std::uint32_t>(), nb::arg("total_units"))
      .def_prop_ro("total_units", &BlockAllocator::total_units)
      .def_prop_ro("free_units", &BlockAllocator::free_units)
      .def_prop_ro("owned_units", &BlockAllocator::owned_units)
      .def_prop_ro("reserved_units", &BlockAllocator::reserved_units)
      .def("add_owner", &BlockAllocator::add_owner, nb::arg("member"))
      .def("used", &BlockAllocator::used, nb::arg("owner"))
      .def(
          "can_lease",
          [](const BlockAllocator& self, std::uint32_t layers, std::uint32_t layer_runs,
             std::uint32_t run_units, std::uint32_t rows) {
            return self.can_lease(shape_of(layers, layer_runs, run_units), rows);
          },
          nb::arg("layers"), nb::arg("layer_runs"), nb::arg("run_units"), nb::arg("rows"))
      .def(
          "lease",
          [](BlockAllocator& self, mux::Owner owner, std::uint32_t layers,
             std::uint32_t layer_runs, std::uint32_t run_units, std::uint32_t rows) {
            const RowShape shape = shape_of(layers, layer_runs, run_units);
            return rows_of(self.lease(owner, shape, rows), shape.runs());
          },
          nb::arg("owner"), nb::arg("layers"), nb::arg("layer_runs"), nb::arg("run_units"),
          nb::arg("rows"), nb::sig("def lease(self, owner: int, layers: int, layer_runs: int, "
                                   "run_units: int, rows: int) -> tuple[tuple[int, ...], ...]"))
      .def(
          "free",
          [](BlockAllocator& self, nb::sequence rows, std::uint32_t row_runs,
             std::uint32_t run_units) { self.free(runs_of(rows, row_runs), run_units); },
          nb::arg("rows"), nb::arg("row_runs"), nb::arg("run_units"),
          nb::sig("def free(self, rows: collections.abc.Sequence[collections.abc.Sequence[int]], row_runs: int, "
                  "run_units: int) -> None"))
      .def(
          "retag",
          [](BlockAllocator& self, nb::sequence rows, std::uint32_t row_runs,
             std::uint32_t run_units, mux::Owner owner) {
            self.retag(runs_of(rows, row_runs), run_units, owner);
          },
          nb::arg("rows"), nb::arg("row_runs"), nb::arg("run_units"), nb::arg("owner"),
          nb::sig("def retag(self, rows: collections.abc.Sequence[collections.abc.Sequence[int]], row_runs: int, "
                  "run_units: int, owner: int) -> None"))
      .def("reclaim", &BlockAllocator::reclaim, nb::arg("owner"))
      .def(
          "reserve",
          [](BlockAllocator& self, mux::Owner owner, std::uint32_t units) {
            return spans_of(self.reserve(owner, units));
          },
          nb::arg("owner"), nb::arg("units"),
          nb::sig("def reserve(self, owner: int, units: int) -> tuple[tuple[int, int], ...]"))
      .def(
          "release",
          [](BlockAllocator& self, mux::Owner owner) { return spans_of(self.release(owner)); },
          nb::arg("owner"),
          nb::sig("def release(self, owner: int) -> tuple[tuple[int, int], ...]"))
      .def(
          "free_spans", [](const BlockAllocator& self) { return spans_of(self.free_spans()); },
          nb::sig("def free_spans(self) -> tuple[tuple[int, int], ...]"))
      .def("audit", &BlockAllocator::audit);
}

void bind_geometry(nb::module_& m) {
  using mux::RunGeometry;
  nb::class_<RunGeometry>(m, "RunGeometry")
      .def(
          "__init__",
          [](RunGeometry* self, std::int64_t kv_heads, std::int64_t head_dim,
             std::int64_t unit_elements) {
            new (self) RunGeometry{kv_heads, head_dim, unit_elements};
          },
          nb::kw_only(), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("unit_elements"))
      .def_prop_ro("run_units", &RunGeometry::run_units)
      .def("starts", &RunGeometry::starts, nb::arg("total_units"))
      .def(
          "strides",
          [](const RunGeometry& self) {
            const auto s = self.strides();
            return nb::make_tuple(s[0], s[1], s[2], s[3]);
          },
          nb::sig("def strides(self) -> tuple[int, int, int, int]"))
      .def("k_offset", &RunGeometry::k_offset, nb::arg("run"), nb::arg("head"), nb::arg("token"))
      .def("v_offset", &RunGeometry::v_offset, nb::arg("run"), nb::arg("head"), nb::arg("token"));
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "Geometry and block allocator of the KV pool.";
  nb::exception<mux::Exhausted>(m, "Exhausted");
  nb::exception<mux::InvariantBroken>(m, "InvariantBroken");
  bind_allocator(m);
  bind_geometry(m);
}
