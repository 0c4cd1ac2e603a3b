// The decoder's side of the Python module: plain lists and addresses cross the border.
//
// An address is that of a tensor's first number, contiguous, and is read or written only during the
// call. native_decoder.py, the one user, checks shapes and types before it hands one over.

#include "../bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "decoder.hpp"
#include "isa.hpp"

namespace nb = nanobind;

#if QM_HAS_DECODER
namespace quickmatch::decoder {
namespace {

using Address = std::uintptr_t;
using Ints = std::vector<std::int32_t>;

template <typename Value>
const Value* at(Address address) {
    return reinterpret_cast<const Value*>(address);
}

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
    return shape;
}

// The decoder, and what of its shape the conversions need.
struct Handle {
    Shape shape;
    Decoder decoder;

    Handle(const nb::dict& d, int num_threads) : shape(make_shape(d)), decoder(shape, num_threads) {}

    void set_ends(Address embedding, Address lm_head, Address norm, Address cos, Address sin) {
        decoder.set_embedding(at<Bf16>(embedding));
        decoder.set_lm_head(Weight(at<Bf16>(lm_head), nullptr, shape.vocab, shape.hidden));
        decoder.set_final_norm(at<float>(norm));
        decoder.set_rotary(at<float>(cos), at<float>(sin));
    }

    std::array<std::array<std::size_t, 2>, kNumPlaces> places() const {
        return {{{shape.qkv_size(), shape.hidden},
                 {shape.hidden, shape.q_size()},
                 {2 * shape.inner, shape.hidden},
                 {shape.hidden, shape.inner}}};
    }

    void add_layer(Address attention_norm, Address mlp_norm, Address head_norms,
                   const std::vector<Address>& weights, const std::vector<Address>& biases) {
        Layer layer;
        layer.attention_norm = floats(attention_norm, shape.hidden);
        layer.mlp_norm = floats(mlp_norm, shape.hidden);
        layer.head_norms = floats(
            head_norms, (shape.heads.num_query + shape.heads.num_kv) * shape.heads.dim);
        for (std::size_t i = 0; i < kNumPlaces; ++i) {
            const auto [out, in] = places()[i];
            layer.weights[i] = Weight(at<Bf16>(weights.at(i)), at<Bf16>(biases.at(i)), out, in);
        }
        decoder.add_layer(std::move(layer));
    }

    // ranks, downs, ups: of each layer's four places in turn; rank 0 where there is none.
    void set_adapter(std::int32_t row, const Ints& ranks, const std::vector<Address>& downs,
                     const std::vector<Address>& ups) {
        auto adapter = std::make_unique<Adapter>();
        adapter->layers.resize(shape.num_layers);
        for (std::size_t i = 0; i < shape.num_layers * kNumPlaces; ++i) {
            if (ranks.at(i) == 0) continue;
            const auto [out, in] = places()[i % kNumPlaces];
            const std::size_t rank = ranks[i];
            LowRank& low = adapter->layers[i / kNumPlaces][i % kNumPlaces];
            low.down = Weight(at<Bf16>(downs.at(i)), nullptr, rank, in);
            low.up = Weight(at<Bf16>(ups.at(i)), nullptr, out, rank);
        }
        decoder.set_adapter(row, std::move(adapter));
    }

    // spans: five numbers each: first row, rows, tokens before, blocks, whether it holds a tree.
    void run(Ints token_ids, Ints positions, Ints slots, Ints row_adapters, const Ints& spans,
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
        nb::gil_scoped_release released;
        decoder.run(step, reinterpret_cast<float*>(logits), reinterpret_cast<Bf16*>(aux));
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

}  // namespace
}  // namespace quickmatch::decoder
#endif

namespace quickmatch {

void bind_decoder(nb::module_& m) {
    m.def("decoder_is_supported", &decoder::is_supported);
#if QM_HAS_DECODER
    using decoder::Handle;
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
        .def("move", [](Handle& h, const decoder::Ints& from, const decoder::Ints& to) {
                 h.decoder.move(from, to);
             }, nb::arg("sources"), nb::arg("targets"))
        .def_prop_ro("num_bytes", [](const Handle& h) { return h.decoder.num_bytes(); });
#endif
}

}  // namespace quickmatch
