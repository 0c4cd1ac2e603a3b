// Threads that share the parts of one step.
//
// A part is done in microseconds, where a queue with locks would take as long as the part; so parts
// are claimed by counting up one atomic word, and whoever waits for the next lot waits actively for
// some hundred microseconds before it sleeps. Nobody waits for a helper that has claimed nothing: on a
// machine that is busy with something else the caller does the work alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "isa.hpp"

namespace quickmatch::QM_ISA {

class Team {
  public:
    // num_threads: the caller's included; 1 for no helpers.
    explicit Team(int num_threads) : size_(std::max(num_threads, 1)) {
        for (int helper = 1; helper < size_; ++helper) threads_.emplace_back([this] { help(); });
    }
    ~Team() {
        is_over_ = true;
        announce(0);
        for (auto& thread : threads_) thread.join();
    }
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    // Whether `share` is to share from here on: waking a helper takes longer than a small step.
    void set_active(bool is_active) { is_active_ = is_active; }

    // Call task(first, last) on ranges that make up [0, count), in any order and by any member.
    template <typename Task>
    void share(std::size_t count, const Task& task) {
        if (size_ == 1 || count < 2 || !is_active_) {
            if (count > 0) task(std::size_t{0}, count);
            return;
        }
        call_ = [](const void* context, std::size_t first, std::size_t last) {
            (*static_cast<const Task*>(context))(first, last);
        };
        context_ = &task;
        size_of_part_ = std::max<std::size_t>(1, count / (std::size_t(size_) * kPartsEach));
        count_ = count;
        const std::size_t num_parts = (count + size_of_part_ - 1) / size_of_part_;
        num_left_.store(num_parts, std::memory_order_relaxed);
        announce(num_parts);
        while (do_part()) {
        }
        while (num_left_.load(std::memory_order_acquire) > 0) relax();
    }

  private:
    static constexpr std::size_t kPartsEach = 2;
    static constexpr int kActiveLooks = 8000;
    // The word that is counted up: number of the lot, number of its parts, parts claimed.
    static constexpr int kPartBits = 20;
    static constexpr std::uint64_t kPartMask = (std::uint64_t{1} << kPartBits) - 1;

    static void relax() { _mm_pause(); }

    void announce(std::size_t num_parts) {
        ++lot_;
        const std::uint64_t word = (lot_ << kPartBits | num_parts) << kPartBits;
        claims_.store(word, std::memory_order_release);
        if (num_asleep_.load() > 0) claims_.notify_all();
    }

    // Claim a part and do it; whether there was one. A claim keeps `share` from returning, so what
    // it wrote for the lot is still there.
    bool do_part() {
        const std::uint64_t seen = claims_.load(std::memory_order_acquire);
        if (is_empty(seen)) return false;
        const std::uint64_t claimed = claims_.fetch_add(1, std::memory_order_acq_rel);
        if (is_empty(claimed)) return false;
        const std::size_t first = (claimed & kPartMask) * size_of_part_;
        call_(context_, first, std::min(first + size_of_part_, count_));
        num_left_.fetch_sub(1, std::memory_order_release);
        return true;
    }

    static bool is_empty(std::uint64_t word) {
        return (word & kPartMask) >= (word >> kPartBits & kPartMask);
    }

    void help() {
        for (;;) {
            while (do_part()) {
            }
            std::uint64_t seen = claims_.load(std::memory_order_acquire);
            for (int look = 0; look < kActiveLooks && is_empty(seen) && !is_over_; ++look) {
                relax();
                seen = claims_.load(std::memory_order_acquire);
            }
            if (is_over_) return;
            if (!is_empty(seen)) continue;
            num_asleep_.fetch_add(1);
            claims_.wait(seen);
            num_asleep_.fetch_sub(1);
        }
    }

    int size_;
    bool is_active_ = true;
    std::uint64_t lot_ = 0;
    std::atomic<std::uint64_t> claims_{0};
    std::atomic<std::size_t> num_left_{0};
    std::atomic<int> num_asleep_{0};
    std::atomic<bool> is_over_{false};
    void (*call_)(const void*, std::size_t, std::size_t) = nullptr;
    const void* context_ = nullptr;
    std::size_t count_ = 0, size_of_part_ = 1;
    std::vector<std::thread> threads_;
};

}  // namespace quickmatch::QM_ISA
