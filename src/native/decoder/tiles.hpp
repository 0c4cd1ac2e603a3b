// AMX's tiles: eight registers of up to sixteen rows of 64 bytes, and the products of two of them.
//
// C += A · B, where A has a row for each row of C and B one for each dword of A's rows; a dword is a pair
// of bfloat16 or four bytes. With QM_SOFTWARE_TILES the same is computed without such registers, number
// for number as Intel's manual has it (Software Developer's Manual, volume 2: TDPBF16PS, TDPBSUD), but
// for numbers below the normal ones, which the instruction takes as 0.
#pragma once

#include "isa.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rows.hpp"

namespace quickmatch::QM_ISA {

constexpr std::size_t kTileRows = 16;
constexpr std::size_t kTileBytes = 64;  // of a row
constexpr std::size_t kTileDwords = kTileBytes / 4;

// Which register holds what: the sums of up to four panels, rows, and weights by turns, so that a load
// need not wait for the product before it.
constexpr int kRowsTile = 4;
constexpr int weights_tile(int panel) { return 5 + panel % 2; }

// The palette and the sizes of all tiles, as LDTILECFG reads them.
struct alignas(64) TileSizes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {};
    std::uint8_t rows[16] = {};

    // num_rows: of the rows and of the sums; depth: bytes of a row that are multiplied, in whole dwords.
    TileSizes(std::size_t num_rows, std::size_t depth) {
        for (int tile = 0; tile < 8; ++tile) {
            const bool is_weights = tile > kRowsTile;
            bytes[tile] = std::uint16_t(tile == kRowsTile ? depth : kTileBytes);
            rows[tile] = std::uint8_t(is_weights ? depth / 4 : num_rows);
        }
    }
};

#ifndef QM_SOFTWARE_TILES

// In assembly: the compilers' own functions take no template arguments, and GCC's do not say that they
// read and write memory.
template <int kTile>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
inline void tile_load(const void* from, std::size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_store(void* to, std::size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
// Pairs of bfloat16.
template <int kC, int kA, int kB>
inline void tile_dot_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}
// Signed bytes by unsigned ones.
template <int kC, int kA, int kB>
inline void tile_dot_bytes() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}
inline void tile_configure(const TileSizes& sizes) {
    asm volatile("ldtilecfg %0" : : "m"(sizes));
}
inline void tile_release() { asm volatile("tilerelease"); }

#else

struct SoftwareTiles {
    TileSizes sizes{0, 0};
    std::uint8_t data[8][kTileRows][kTileBytes] = {};

    static SoftwareTiles& own() {
        thread_local SoftwareTiles tiles;
        return tiles;
    }
    template <typename Value>
    Value get(int tile, std::size_t row, std::size_t column) const {
        Value value;
        std::memcpy(&value, data[tile][row] + column * sizeof value, sizeof value);
        return value;
    }
    template <typename Value>
    void put(int tile, std::size_t row, std::size_t column, Value value) {
        std::memcpy(data[tile][row] + column * sizeof value, &value, sizeof value);
    }
};

template <int kTile>
inline void tile_zero() {
    std::memset(SoftwareTiles::own().data[kTile], 0, sizeof SoftwareTiles::own().data[kTile]);
}
template <int kTile>
inline void tile_load(const void* from, std::size_t stride) {
    SoftwareTiles& tiles = SoftwareTiles::own();
    tile_zero<kTile>();
    for (std::size_t row = 0; row < tiles.sizes.rows[kTile]; ++row) {
        std::memcpy(tiles.data[kTile][row], static_cast<const char*>(from) + row * stride, tiles.sizes.bytes[kTile]);
    }
}
template <int kTile>
inline void tile_store(void* to, std::size_t stride) {
    const SoftwareTiles& tiles = SoftwareTiles::own();
    for (std::size_t row = 0; row < tiles.sizes.rows[kTile]; ++row) {
        std::memcpy(static_cast<char*>(to) + row * stride, tiles.data[kTile][row], tiles.sizes.bytes[kTile]);
    }
}
// The earlier and the later of each pair are summed apart, then together, then added.
template <int kC, int kA, int kB>
inline void tile_dot_pairs() {
    SoftwareTiles& tiles = SoftwareTiles::own();
    for (std::size_t m = 0; m < tiles.sizes.rows[kC]; ++m) {
        for (std::size_t n = 0; n < tiles.sizes.bytes[kC] / 4u; ++n) {
            float sums[2] = {0.0f, 0.0f};
            for (std::size_t k = 0; k < tiles.sizes.bytes[kA] / 4u; ++k) {
                for (std::size_t i = 0; i < 2; ++i) {
                    const float a = widen(tiles.get<Bf16>(kA, m, 2 * k + i));
                    sums[i] = std::fma(a, widen(tiles.get<Bf16>(kB, k, 2 * n + i)), sums[i]);
                }
            }
            tiles.put(kC, m, n, tiles.get<float>(kC, m, n) + (sums[0] + sums[1]));
        }
    }
}
template <int kC, int kA, int kB>
inline void tile_dot_bytes() {
    SoftwareTiles& tiles = SoftwareTiles::own();
    for (std::size_t m = 0; m < tiles.sizes.rows[kC]; ++m) {
        for (std::size_t n = 0; n < tiles.sizes.bytes[kC] / 4u; ++n) {
            std::int32_t sum = tiles.get<std::int32_t>(kC, m, n);
            for (std::size_t k = 0; k < tiles.sizes.bytes[kA]; ++k) {
                sum += std::int32_t(tiles.get<std::int8_t>(kA, m, k)) *
                       std::int32_t(tiles.get<std::uint8_t>(kB, k / 4, 4 * n + k % 4));
            }
            tiles.put(kC, m, n, sum);
        }
    }
}
inline void tile_configure(const TileSizes& sizes) { SoftwareTiles::own().sizes = sizes; }
inline void tile_release() { SoftwareTiles::own() = SoftwareTiles(); }

#endif

// The tiles of this thread, for as long as a product takes: others in the process may use them too.
class Tiles {
  public:
    Tiles() = default;
    ~Tiles() {
        if (num_rows_ > 0) tile_release();
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    // What the tiles held is lost where their sizes change.
    void resize(std::size_t num_rows, std::size_t depth) {
        if (num_rows == num_rows_ && depth == depth_) return;
        tile_configure(TileSizes(num_rows, depth));
        num_rows_ = num_rows;
        depth_ = depth;
    }

  private:
    std::size_t num_rows_ = 0, depth_ = 0;
};

}  // namespace quickmatch::QM_ISA
