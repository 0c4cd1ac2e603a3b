// What the assessor of drafts looks like from Python: numbers, lists and draft trees cross over.
//
// A tree is an object with the five lists of tree.py's DraftTree, or the suffix index's, which crosses
// over as it is. Lists are read and made item by item: the general conversions take several times as
// long, and they are most of a step's work.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unordered_map.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "../bindings.hpp"
#include "../suffix/continuations.hpp"
#include "assessor.hpp"

namespace nb = nanobind;

namespace quickmatch::speculation {
namespace {

// ---- from Python

std::int64_t as_int(PyObject* object) {
    const std::int64_t value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    return value;
}

double as_double(PyObject* object) {
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred()) throw nb::python_error();
    return value;
}

// A list that somebody else holds.
class Items {
  public:
    explicit Items(nb::handle list) : list_(list.ptr()) {
        if (!PyList_Check(list_)) throw nb::type_error("a list was expected");
        size_ = static_cast<std::size_t>(PyList_Size(list_));
    }

    std::size_t size() const { return size_; }
    PyObject* operator[](std::size_t i) const {
        PyObject* item = PyList_GetItem(list_, static_cast<Py_ssize_t>(i));
        if (item == nullptr) throw nb::python_error();
        return item;
    }

  private:
    PyObject* list_;
    std::size_t size_;
};

// One of the lists of a tree.
class Column {
  public:
    Column(nb::handle tree, PyObject* name)
        : held_(nb::steal(PyObject_GetAttr(tree.ptr(), name))), items_(checked(held_)) {}

    std::size_t size() const { return items_.size(); }
    PyObject* operator[](std::size_t i) const { return items_[i]; }

  private:
    static nb::handle checked(const nb::object& held) {
        if (!held.is_valid()) throw nb::python_error();
        return held;
    }

    nb::object held_;
    Items items_;
};

PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

void take_draft(const suffix::Tree& from, Assessor& to) {
    const std::size_t size = from.token_ids.size();
    if (size == 0) return;
    Tree& tree = to.add_draft();
    for (std::size_t i = 0; i < size; ++i) {
        const std::int32_t parent = from.parents[i];
        const int depth = parent < 0 ? 1 : tree[static_cast<std::size_t>(parent)].depth + 1;
        if (depth > kMaxDepth) throw std::out_of_range("a draft is deeper than is looked at");
        tree.push_back({from.token_ids[i], from.confidences[i], parent, depth, from.sources[i], from.features[i]});
    }
}

void read_tree(nb::handle from, Assessor& to) {
    const suffix::Tree* own = nullptr;
    if (nb::try_cast(from, own)) return take_draft(*own, to);
    static PyObject* const names[] = {interned("token_ids"), interned("parents"),
                                      interned("confidences"), interned("sources"),
                                      interned("features")};
    const Column token_ids(from, names[0]);
    if (token_ids.size() == 0) return;
    const Column parents(from, names[1]), confidences(from, names[2]), sources(from, names[3]),
        features(from, names[4]);
    Tree& tree = to.add_draft();
    for (std::size_t i = 0; i < token_ids.size(); ++i) {
        const std::int64_t parent = as_int(parents[i]), source = as_int(sources[i]);
        const std::int64_t feature = as_int(features[i]);
        const double confidence = as_double(confidences[i]);
        if (parent < -1 || parent >= static_cast<std::int64_t>(i)) {
            throw std::out_of_range("the parent of node " + std::to_string(i) + " is " +
                                    std::to_string(parent) + "; it comes before");
        }
        const int depth = parent < 0 ? 1 : tree[static_cast<std::size_t>(parent)].depth + 1;
        const bool is_known = source >= 0 && source < static_cast<std::int64_t>(kNumSources);
        // Rounding may have put a confidence above 1.
        if (!(confidence >= 0.0 && confidence < 1.0 + 1.0 / kGrid) || !is_known || feature < 0 ||
            feature > kMaxFeature || depth > kMaxDepth) {
            const std::string values = "confidence " + std::to_string(confidence) + ", source " +
                                       std::to_string(source) + ", feature " +
                                       std::to_string(feature) + ", depth " +
                                       std::to_string(depth);
            throw std::out_of_range("a drafted token is out of range: " + values);
        }
        tree.push_back({as_int(token_ids[i]), confidence, static_cast<std::int32_t>(parent), depth,
                        static_cast<Source>(source), static_cast<std::uint8_t>(feature)});
    }
}

// costs: (stairs, factor, plain_s, extra_s); stairs are read as far as the pool reaches.
Costs read_costs(const Assessor& assessor, nb::handle costs) {
    const auto item = [&](Py_ssize_t i) {
        PyObject* found = PyTuple_GetItem(costs.ptr(), i);
        if (found == nullptr) throw nb::python_error();
        return found;
    };
    Costs out{{}, as_double(item(1)), as_double(item(2)), as_double(item(3))};
    const Items stairs{nb::handle(item(0))};
    const auto num_seqs = static_cast<std::int64_t>(assessor.num_gathered());
    const auto most = num_seqs + static_cast<std::int64_t>(assessor.num_pooled());
    for (std::size_t i = 0; i < stairs.size(); ++i) {
        PyObject *num_rows = PyTuple_GetItem(stairs[i], 0), *seconds = PyTuple_GetItem(stairs[i], 1);
        if (num_rows == nullptr || seconds == nullptr) throw nb::python_error();
        const Stair stair{as_int(num_rows), as_double(seconds)};
        if (stair.num_rows <= num_seqs) throw nb::value_error("a stair has no room for a draft");
        if (stair.num_rows > most) break;
        out.stairs.push_back(stair);
    }
    return out;
}

std::size_t not_negative(std::int64_t value) {
    return static_cast<std::size_t>(std::max<std::int64_t>(value, 0));
}

// ---- to Python

template <typename Made>  // item(i): a new reference
nb::object list_of(std::size_t size, const Made& item) {
    nb::object out = nb::steal(PyList_New(static_cast<Py_ssize_t>(size)));
    if (!out.is_valid()) throw nb::python_error();
    for (std::size_t i = 0; i < size; ++i) {
        PyObject* made = item(i);
        if (made == nullptr) throw nb::python_error();
        PyList_SetItem(out.ptr(), static_cast<Py_ssize_t>(i), made);
    }
    return out;
}

nb::object floats(const std::vector<double>& values) {
    return list_of(values.size(), [&](std::size_t i) { return PyFloat_FromDouble(values[i]); });
}

// The five columns of a tree, None of an empty one.
PyObject* columns_of(const Tree& tree) {
    const std::size_t size = tree.size();
    if (size == 0) return nb::none().release().ptr();
    const auto ints = [&](auto field) {
        return list_of(size, [&](std::size_t i) {
            return PyLong_FromLongLong(static_cast<long long>(tree[i].*field));
        });
    };
    const nb::object confidences =
        list_of(size, [&](std::size_t i) { return PyFloat_FromDouble(tree[i].confidence); });
    return nb::make_tuple(ints(&Node::token_id), ints(&Node::parent), confidences,
                          ints(&Node::source), ints(&Node::feature))
        .release()
        .ptr();
}

nb::object as_list(const Chosen& chosen) {
    return list_of(chosen.trees.size(), [&](std::size_t i) { return columns_of(chosen.trees[i]); });
}

// ---- the methods

// renewed: ids of those whose drafts are merged anew, None for all.
void gather(Assessor& assessor, nb::list sequence_ids, nb::list trees, std::int64_t now, int width,
            int depth, std::optional<nb::tuple> renewed) {
    const Items ids(sequence_ids), by_sequence(trees);
    const bool is_anew = !renewed.has_value();
    if (ids.size() != by_sequence.size() || (!is_anew && ids.size() != assessor.num_gathered())) {
        throw nb::value_error("sequences and their drafts differ in number");
    }
    assessor.begin_gathering(now, width, depth, is_anew);
    for (std::size_t i = 0; i < ids.size(); ++i) {
        if (!is_anew) {
            const int is_renewed = PySequence_Contains(renewed->ptr(), ids[i]);
            if (is_renewed < 0) throw nb::python_error();
            if (is_renewed == 0) {
                assessor.keep();
                continue;
            }
        }
        const Items drafts{nb::handle(by_sequence[i])};
        for (std::size_t d = 0; d < drafts.size(); ++d) read_tree(drafts[d], assessor);
        assessor.merge(as_int(ids[i]));
    }
    assessor.end_gathering();
}

nb::tuple outlook(Assessor& assessor, nb::handle costs) {
    const Outlook out = assessor.outlook(read_costs(assessor, costs));
    const auto nodes = list_of(out.nodes.size(),
                               [&](std::size_t i) { return PyLong_FromSize_t(out.nodes[i]); });
    return nb::make_tuple(out.tokens_per_s, floats(out.gains), nodes, floats(out.model_ratios));
}

nb::tuple choose(Assessor& assessor, nb::handle costs, double margin, std::int64_t max_rows,
                 std::size_t max_nodes, double least_gain) {
    const Chosen chosen = assessor.choose(read_costs(assessor, costs), margin,
                                          not_negative(max_rows), max_nodes, least_gain);
    return nb::make_tuple(chosen.num_nodes, as_list(chosen));
}

nb::object choose_all(Assessor& assessor, std::int64_t max_rows, std::size_t max_nodes) {
    return as_list(assessor.choose_all(not_negative(max_rows), max_nodes));
}

nb::object judge(Assessor& assessor, std::int64_t sequence_id, nb::list token_ids,
                 const std::string& scope, bool is_learning, bool was_plain) {
    const Items items(token_ids);
    std::vector<Token> tokens(items.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = as_int(items[i]);
    const auto verdict = assessor.judge(sequence_id, tokens, scope, is_learning, was_plain);
    if (!verdict) return nb::none();
    const auto drifted = list_of(verdict->drifted.size(), [&](std::size_t i) {
        return PyLong_FromLong(verdict->drifted[i]);
    });
    return nb::make_tuple(drifted, verdict->is_right, verdict->is_right_of_model);
}

void renew(Assessor& assessor, int source) {
    if (source < 0 || source >= static_cast<int>(kNumSources)) {
        throw nb::index_error("no such source");
    }
    assessor.renew(static_cast<Source>(source));
}

}  // namespace
}  // namespace quickmatch::speculation

void quickmatch::bind_speculation(nb::module_& m) {
    using namespace quickmatch::speculation;
    nb::class_<Promises>(m, "Promises")
        .def("look", [](Promises& promises, int width) { return floats(promises.look(width)); })
        .def_prop_ro("behind", &Promises::behind)
        .def("soften", &Promises::soften)
        .def("renew", &Promises::renew);
    nb::class_<Assessor>(m, "Assessor")
        .def(nb::init<std::size_t, double>(), nb::kw_only(), nb::arg("max_depth"), nb::arg("floor"))
        .def_ro("promises", &Assessor::promises)
        .def_prop_ro("num_sequences", &Assessor::num_sequences)
        .def_prop_ro("drifts", &Assessor::drifts)
        .def("ask", &Assessor::ask)
        .def("gather", &gather)
        .def("outlook", &outlook)
        .def("gain", &Assessor::gain)
        .def("choose", &choose)
        .def("choose_all", &choose_all)
        .def("judge", &judge)
        .def("refresh", &Assessor::refresh)
        .def("renew", &renew)
        .def("forget", &Assessor::forget);
}
