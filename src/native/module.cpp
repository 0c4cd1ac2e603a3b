// The Python module quickmatch._native. What it offers is typed in src/quickmatch/_native.pyi.
//
// Plain lists and numbers cross the border: no tensors, no headers of any other package.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "suffix/suffix_index.hpp"

namespace nb = nanobind;
using quickmatch::suffix::SuffixIndex;
using quickmatch::suffix::Tree;
using quickmatch::suffix::UnknownSequence;

namespace {

template <typename Value>
nb::list as_list(const std::vector<Value>& values) {
    nb::list out;
    for (const Value value : values) out.append(value);
    return out;
}


}  // namespace

NB_MODULE(_native, m) {
    // The engine freezes what it has loaded, so at its end Python frees nothing of it.
    nb::set_leak_warnings(false);
    nb::register_exception_translator([](const std::exception_ptr& error, void*) {
        try {
            std::rethrow_exception(error);
        } catch (const UnknownSequence& unknown) {
            PyErr_SetString(PyExc_KeyError, unknown.what());
        }
    });
    // The assessor of drafts takes it as it is; its lists are made for whoever else asks.
    nb::class_<Tree>(m, "Draft")
        .def("__len__", [](const Tree& tree) { return tree.token_ids.size(); })
        .def_prop_ro("token_ids", [](const Tree& tree) { return as_list(tree.token_ids); })
        .def_prop_ro("parents", [](const Tree& tree) { return as_list(tree.parents); })
        .def_prop_ro("confidences", [](const Tree& tree) { return as_list(tree.confidences); })
        .def_prop_ro("sources", [](const Tree& tree) { return as_list(tree.sources); })
        .def_prop_ro("features", [](const Tree& tree) { return as_list(tree.features); });
    nb::class_<SuffixIndex>(m, "SuffixIndex")
        .def(nb::init<std::size_t, std::uint32_t, double>(), nb::kw_only(), nb::arg("max_tokens"),
             nb::arg("max_depth"), nb::arg("min_confidence"))
        .def("start", &SuffixIndex::start, nb::arg("sequence_id"), nb::arg("scope"),
             nb::arg("prompt"))
        .def("extend", &SuffixIndex::extend, nb::arg("sequence_id"), nb::arg("token_ids"))
        .def("finish", &SuffixIndex::finish, nb::arg("sequence_id"), nb::arg("remember"))
        .def("remember", &SuffixIndex::remember, nb::arg("scope"), nb::arg("token_ids"))
        .def("draft", &SuffixIndex::draft, nb::arg("sequence_id"), nb::arg("max_nodes"),
             nb::arg("ahead"))
        .def_prop_ro("num_tokens", &SuffixIndex::num_tokens)
        .def_prop_ro("num_past_bytes", &SuffixIndex::num_past_bytes)
        .def_prop_ro("num_live_bytes", &SuffixIndex::num_live_bytes);
    quickmatch::bind_decoder(m);
    quickmatch::bind_speculation(m);
}
