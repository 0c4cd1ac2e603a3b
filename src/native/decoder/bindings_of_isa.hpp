// The decoder's side of the Python module, of one instruction set: plain lists and addresses cross the
// border.
//
// An address is that of a tensor's first number, contiguous, and is read or written only during the
// call. native_pass.py and native_head.py check types and shapes before they hand one over.

#pragma once

#include "../bindings.hpp"

#include <map>
#include <string>
#include <utility>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "decoder.hpp"
#include "head.hpp"
#include "product_binding.hpp"
#include "simd.hpp"

namespace nb = nanobind;

namespace quickmatch::QM_ISA {
namespace {

using Ints = std::vector<std::int32_t>;

std::vector<float> floats(Address address, std::size_t size) {
    const float* from = at<float>(address);
    return from == nullptr ? std::vector<float>() : std::vector<float>(from, from + size);
}

Shape make_shape(const nb::dict& d) {
    const auto number = [&](const char* name) { return nb::cast<std::size_t>(d[name]); };
    Shape shape;
    shape.vocab = number("vocab_size");
    shape.hidden = number("hidden_size");
    shape.inner = number("intermediate_size");
    shape.num_layers = number("num_layers");
    shape.heads = Heads{number("num_heads"), number("num_kv_heads"), number("head_dim")};
    shape.eps = nb::cast<float>(d["rms_norm_eps"]);
    shape.num_slots = number("num_slots");
    shape.block_size = number("block_size");
    shape.max_len = number("max_model_len");
    shape.has_int8_kv = d.contains("has_int8_kv") && number("has_int8_kv") != 0;
    return shape;
}

// The decoder, and what of its shape the conversions need.
struct Handle {
    Shape shape;
    Decoder decoder;

    Handle(const nb::dict& d, int num_threads) : shape(make_shape(d)), decoder(shape, num_threads) {}

    void set_ends(Address embedding, const MatrixParts& lm_head, Address norm, Address cos,
                  Address sin) {
        decoder.set_embedding(at<Bf16>(embedding));
        decoder.set_lm_head(make_matrix(decoder.arena(), lm_head, 0, shape.vocab, shape.hidden,
                                         decoder.team()));
        decoder.set_final_norm(at<float>(norm));
        decoder.set_rotary(at<float>(cos), at<float>(sin));
    }

    std::array<std::array<std::size_t, 2>, kNumPlaces> places() const {
        return {{{shape.qkv_size(), shape.hidden},
                 {shape.hidden, shape.q_size()},
                 {2 * shape.inner, shape.hidden},
                 {shape.hidden, shape.inner}}};
    }

    // Where the outputs of the matrices end that a place's product is made of.
    std::vector<std::size_t> matrix_ends(std::size_t place) const {
        const std::size_t q = shape.q_size(), kv = shape.kv_size(), inner = shape.inner;
        switch (place) {
            case 0: return {q, q + kv, q + 2 * kv};
            case 2: return {inner, 2 * inner};
            default: return {shape.hidden};
        }
    }

    void add_layer(Address attention_norm, Address mlp_norm, Address head_norms,
                   const std::vector<MatrixParts>& weights,
                   const std::vector<Address>& biases) {
        Layer layer;
        layer.attention_norm = floats(attention_norm, shape.hidden);
        layer.mlp_norm = floats(mlp_norm, shape.hidden);
        layer.head_norms = floats(
            head_norms, (shape.heads.num_query + shape.heads.num_kv) * shape.heads.dim);
        for (std::size_t i = 0; i < kNumPlaces; ++i) {
            const auto [out, in] = places()[i];
            layer.weights[i] = make_matrix(decoder.arena(), weights.at(i), biases.at(i), out, in,
                                           decoder.team());
        }
        decoder.add_layer(std::move(layer));
    }

    // ranks, downs, ups: of each layer's four places in turn; rank 0 where there is none.
    void set_adapter(std::int32_t row, const Ints& ranks, const std::vector<Address>& downs,
                     const std::vector<Address>& ups) {
        std::size_t size = 0;
        for (std::size_t i = 0; i < ranks.size(); ++i) {
            const auto [out, in] = places()[i % kNumPlaces];
            size += std::size_t(ranks[i]) * (out + in) * sizeof(Bf16);
        }
        auto adapter = std::make_unique<Adapter>(size);
        adapter->layers.resize(shape.num_layers);
        for (std::size_t i = 0; i < shape.num_layers * kNumPlaces; ++i) {
            if (ranks.at(i) == 0) continue;
            const std::size_t layer = i / kNumPlaces, place = i % kNumPlaces;
            adapter->layers[layer][place] =
                LowRank(adapter->arena, at<Bf16>(downs.at(i)), at<Bf16>(ups.at(i)), matrix_ends(place), ranks[i],
                        places()[place][1], decoder.has_few_bits(layer, place));
        }
        decoder.set_adapter(row, std::move(adapter));
    }

    // spans: five numbers each: first row, rows, tokens before, blocks, whether it holds a tree.
    Ints run(Ints token_ids, Ints positions, Ints slots, Ints row_adapters, const Ints& spans,
             const Ints& blocks, Ints parents, Ints wanted, Ints aux_layers, Ints windows,
             Address logits, Address aux) {
        Step step;
        const std::size_t rows = token_ids.size();
        for (const std::int32_t id : token_ids) check(id, shape.vocab, "token id");
        for (const std::int32_t position : positions) check(position, shape.max_len, "position");
        for (const std::int32_t slot : slots) check(slot, shape.num_slots, "slot");
        for (const std::int32_t row : wanted) check(row, rows, "row");
        std::size_t block = 0, tree = 0;
        for (std::size_t s = 0; s + 5 <= spans.size(); s += 5) {
            Span span{std::size_t(spans[s]), std::size_t(spans[s + 1]), std::size_t(spans[s + 2]),
                      kNoTree, {}};
            span.chunks = chunks_of(span, blocks.data() + block, spans[s + 3]);
            block += spans[s + 3];
            if (spans[s + 4] != 0) {
                span.tree_start = tree;
                tree += span.num_rows - 1;
            }
            step.spans.push_back(std::move(span));
        }
        step.token_ids = std::move(token_ids);
        step.positions = std::move(positions);
        step.slots = std::move(slots);
        step.row_adapters = std::move(row_adapters);
        step.parents = std::move(parents);
        step.wanted = std::move(wanted);
        step.aux_layers = std::move(aux_layers);
        step.windows = std::move(windows);
        nb::gil_scoped_release released;  // given back before the answer is turned into a list
        return decoder.run(step, reinterpret_cast<float*>(logits), reinterpret_cast<Bf16*>(aux));
    }

    std::vector<std::uint32_t> chunks_of(const Span& span, const std::int32_t* blocks,
                                         std::size_t num_blocks) const {
        const std::size_t count = (span.context + span.num_rows + kChunk - 1) / kChunk;
        const std::size_t each = shape.block_size / kChunk;
        if (count > num_blocks * each) throw std::out_of_range("a span has too few blocks");
        std::vector<std::uint32_t> chunks(count);
        for (std::size_t c = 0; c < count; ++c) {
            chunks[c] = std::uint32_t(blocks[c / each] * each + c % each);
        }
        return chunks;
    }

    static void check(std::int32_t value, std::size_t end, const char* what) {
        if (value < 0 || std::size_t(value) >= end) {
            throw std::out_of_range(std::string(what) + " " + std::to_string(value) +
                                    " is not below " + std::to_string(end));
        }
    }
};

HeadShape make_head_shape(const nb::dict& d) {
    const auto number = [&](const char* name) { return nb::cast<std::size_t>(d[name]); };
    HeadShape shape;
    shape.hidden = number("hidden_size");
    shape.inner = number("intermediate_size");
    shape.num_aux = number("num_aux");
    shape.target_hidden = number("target_hidden_size");
    shape.draft_vocab = number("draft_vocab_size");
    shape.vocab = number("vocab_size");
    shape.heads = Heads{number("num_heads"), number("num_kv_heads"), number("head_dim")};
    shape.eps = nb::cast<float>(d["rms_norm_eps"]);
    shape.num_slots = number("num_slots");
    shape.block_size = number("block_size");
    shape.max_len = number("max_model_len");
    shape.norm_before_residual = number("norm_before_residual") != 0;
    return shape;
}

// Weights take tens to hundreds of milliseconds to pack, beside streams that go on: without the GIL.
HeadWeights make_head_weights(const HeadShape& shape, const nb::dict& d, Ints target_ids) {
    std::map<std::string, Address> addresses;
    for (const auto& [name, address] : d) {
        addresses[nb::cast<std::string>(name)] = nb::cast<Address>(address);
    }
    const nb::gil_scoped_release released;
    const auto address = [&](const char* name) { return addresses.at(name); };
    HeadWeights weights;
    const auto weight = [&](const char* name, std::size_t out, std::size_t in) {
        return Weight(weights.arena, at<Bf16>(address(name)), nullptr, out, in);
    };
    const std::size_t hidden = shape.hidden, half = shape.heads.dim / 2;
    weights.fuse = weight("fuse", hidden, shape.features());
    weights.qkv = weight("qkv", shape.qkv_size(), 2 * hidden);
    weights.o = weight("o", hidden, shape.q_size());
    weights.gate_up = weight("gate_up", 2 * shape.inner, hidden);
    weights.down = weight("down", hidden, shape.inner);
    weights.lm_head = weight("lm_head", shape.draft_vocab, hidden);
    weights.embedding_norm = floats(address("embedding_norm"), hidden);
    weights.hidden_norm = floats(address("hidden_norm"), hidden);
    weights.mlp_norm = floats(address("mlp_norm"), hidden);
    weights.final_norm = floats(address("final_norm"), hidden);
    weights.cos = floats(address("cos"), shape.max_len * half);
    weights.sin = floats(address("sin"), shape.max_len * half);
    weights.embedding = at<Bf16>(address("embedding"));
    weights.target_ids = std::move(target_ids);
    return weights;
}

struct HeadHandle {
    HeadShape shape;
    Head head;

    HeadHandle(Handle& target, const nb::dict& d, const nb::dict& weights, Ints target_ids)
        : shape(make_head_shape(d)),
          head(shape, make_head_weights(shape, weights, std::move(target_ids)),
               target.decoder.team()) {}

    void observe(std::int64_t sequence_id, std::size_t start, const Ints& rows,
                 const Ints& next_tokens, const Ints& blocks, const std::vector<Address>& aux) {
        for (const std::int32_t id : next_tokens) Handle::check(id, shape.vocab, "token id");
        std::vector<const Bf16*> layers;
        for (const Address address : aux) layers.push_back(at<Bf16>(address));
        head.observe(sequence_id, start, rows, next_tokens, blocks, layers);
    }

    // requests: three numbers each: sequence, its tokens, the last of them.
    nb::list draft(const std::vector<std::int64_t>& requests, std::size_t depth, std::size_t width,
                   std::size_t max_nodes, double min_path, double least_path) {
        std::vector<Request> asked;
        for (std::size_t i = 0; i + 3 <= requests.size(); i += 3) {
            asked.push_back({requests[i], requests[i + 1], std::int32_t(requests[i + 2])});
        }
        std::vector<DraftedTree> trees;
        {
            nb::gil_scoped_release released;
            trees = head.draft(asked, depth, width, max_nodes, min_path, least_path);
        }
        nb::list out;
        for (const DraftedTree& tree : trees) {
            out.append(nb::make_tuple(tree.token_ids, tree.parents, tree.confidences));
        }
        return out;
    }
};

}  // namespace

void bind(nb::module_& m) {
    bind_product(m);
    nb::class_<Handle>(m, "Decoder")
        .def(nb::init<const nb::dict&, int>(), nb::arg("shape"), nb::kw_only(), nb::arg("num_threads"))
        .def("set_ends", &Handle::set_ends, nb::kw_only(), nb::arg("embedding"), nb::arg("lm_head"),
             nb::arg("norm"), nb::arg("cos"), nb::arg("sin"))
        .def("add_layer", &Handle::add_layer, nb::kw_only(), nb::arg("attention_norm"),
             nb::arg("mlp_norm"), nb::arg("head_norms"), nb::arg("weights"), nb::arg("biases"))
        .def("set_adapter", &Handle::set_adapter, nb::arg("row"), nb::kw_only(), nb::arg("ranks"),
             nb::arg("downs"), nb::arg("ups"))
        .def("drop_adapter", [](Handle& h, std::int32_t row) { h.decoder.drop_adapter(row); },
             nb::arg("row"))
        .def("run", &Handle::run, nb::kw_only(), nb::arg("token_ids"), nb::arg("positions"),
             nb::arg("slots"), nb::arg("row_adapters"), nb::arg("spans"), nb::arg("blocks"),
             nb::arg("parents"), nb::arg("wanted"), nb::arg("aux_layers"), nb::arg("windows"),
             nb::arg("logits"), nb::arg("aux"))
        .def("move", [](Handle& h, const Ints& from, const Ints& to) {
                 h.decoder.move(from, to);
             }, nb::arg("sources"), nb::arg("targets"))
        .def("evict", [](Handle& h, const Ints& from, const Ints& to,
                         std::size_t num_first, std::size_t num_last) {
                 nb::gil_scoped_release released;
                 h.decoder.evict({from, to, num_first, num_last});
             }, nb::arg("sources"), nb::arg("targets"), nb::kw_only(), nb::arg("num_first"),
             nb::arg("num_last"))
        .def_prop_ro("num_bytes", [](const Handle& h) { return h.decoder.num_bytes(); });
    nb::class_<HeadHandle>(m, "Head")
        .def(nb::init<Handle&, const nb::dict&, const nb::dict&, Ints>(),
             nb::keep_alive<1, 2>(), nb::arg("target"), nb::kw_only(), nb::arg("shape"),
             nb::arg("weights"), nb::arg("target_ids"))
        .def("observe", &HeadHandle::observe, nb::kw_only(), nb::arg("sequence_id"),
             nb::arg("start"), nb::arg("rows"), nb::arg("next_token_ids"), nb::arg("blocks"),
             nb::arg("aux"))
        .def("forget", [](HeadHandle& h, std::int64_t id) { h.head.forget(id); },
             nb::arg("sequence_id"))
        .def("draft", &HeadHandle::draft, nb::arg("requests"), nb::kw_only(), nb::arg("depth"),
             nb::arg("width"), nb::arg("max_nodes"), nb::arg("min_path"),
            nb::arg("least_path"))
        .def_prop_ro("num_bytes", [](const HeadHandle& h) { return h.head.num_bytes(); });
}

}  // namespace quickmatch::QM_ISA
