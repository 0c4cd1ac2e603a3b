// Large zeroed memory, aligned to cache lines: weights, and keys and values.
//
// It is address space first: pages come as they are written, so a cache that is never filled costs
// nothing. Weights, which are read whole every step, ask for large pages.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace quickmatch::QM_ISA {

template <typename Value>
class Memory {
  public:
    Memory() = default;
    explicit Memory(std::size_t size, bool wants_large_pages = false) : size_(size) {
        if (size == 0) return;
        void* got = mmap(nullptr, num_bytes(), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<Value*>(got);
#ifdef MADV_HUGEPAGE
        if (wants_large_pages) madvise(got, num_bytes(), MADV_HUGEPAGE);
#endif
    }
    ~Memory() {
        if (data_ != nullptr) munmap(data_, num_bytes());
    }
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        swap(other);
        return *this;
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    Value* data() const { return data_; }
    std::size_t size() const { return size_; }
    std::size_t num_bytes() const { return size_ * sizeof(Value); }

  private:
    void swap(Memory& other) {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }

    Value* data_ = nullptr;
    std::size_t size_ = 0;
};

// One piece of address space after the other, cut into parts that live as long as the whole. Weights
// lie in it side by side, on large pages, which parts of some hundred kilobytes alone would not get.
class Arena {
  public:
    explicit Arena(bool wants_large_pages = true) : wants_large_pages_(wants_large_pages) {}

    template <typename Value>
    Value* take(std::size_t size) {
        const std::size_t bytes = (size * sizeof(Value) + kAlign - 1) / kAlign * kAlign;
        if (pieces_.empty() || used_ + bytes > pieces_.back().num_bytes()) {
            pieces_.emplace_back(std::max(bytes, kPiece), wants_large_pages_);
            used_ = 0;
        }
        used_ += bytes;
        return reinterpret_cast<Value*>(pieces_.back().data() + used_ - bytes);
    }

  private:
    static constexpr std::size_t kAlign = 64, kPiece = std::size_t{64} << 20;
    bool wants_large_pages_;
    std::vector<Memory<char>> pieces_;
    std::size_t used_ = 0;
};

// Memory that only grows, and whose content does not outlive the next call.
template <typename Value>
class Scratch {
  public:
    Value* at_least(std::size_t size) {
        if (size > memory_.size()) memory_ = Memory<Value>(size + size / 2);
        return memory_.data();
    }
    Value* data() const { return memory_.data(); }

  private:
    Memory<Value> memory_;
};

}  // namespace quickmatch::QM_ISA
