// An ordered set of small numbers as a bitmap with a summary. Not safe for threads.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace mux {

class IndexSet {
 public:
  static constexpr std::uint32_t kNone = UINT32_MAX;

  explicit IndexSet(std::uint32_t capacity)
      : words_(capacity / 64 + 1), summary_(words_.size() / 64 + 1) {}

  bool empty() const { return count_ == 0; }
  std::uint32_t size() const { return count_; }
  bool contains(std::uint32_t index) const { return (words_[index / 64] >> (index % 64) & 1) != 0; }

  void insert(std::uint32_t index) {
    count_ += contains(index) ? 0 : 1;
    words_[index / 64] |= bit(index % 64);
    summary_[index / 4096] |= bit(index / 64 % 64);
  }

  void erase(std::uint32_t index) {
    count_ -= contains(index) ? 1 : 0;
    words_[index / 64] &= ~bit(index % 64);
    if (words_[index / 64] == 0) summary_[index / 4096] &= ~bit(index / 64 % 64);
  }

  // The lowest member that is at least `from`, or kNone.
  std::uint32_t first(std::uint32_t from = 0) const {
    std::size_t word = from / 64;
    if (word >= words_.size()) return kNone;
    std::uint64_t rest = words_[word] & (~std::uint64_t{0} << (from % 64));
    if (rest == 0) {
      word = next_word(word + 1);
      if (word == words_.size()) return kNone;
      rest = words_[word];
    }
    return static_cast<std::uint32_t>(word * 64) + ctz(rest);
  }

  // The highest member, or kNone.
  std::uint32_t last() const {
    for (std::size_t group = summary_.size(); group-- > 0;) {
      if (summary_[group] == 0) continue;
      const std::size_t word = group * 64 + 63 - clz(summary_[group]);
      return static_cast<std::uint32_t>(word * 64) + 63 - clz(words_[word]);
    }
    return kNone;
  }

 private:
  static constexpr std::uint64_t bit(std::uint32_t at) { return std::uint64_t{1} << at; }
  static std::uint32_t ctz(std::uint64_t word) {
    return static_cast<std::uint32_t>(std::countr_zero(word));
  }
  static std::uint32_t clz(std::uint64_t word) {
    return static_cast<std::uint32_t>(std::countl_zero(word));
  }

  // The first non-empty word at or after `word`, or words_.size().
  std::size_t next_word(std::size_t word) const {
    while (word < words_.size()) {
      const std::uint64_t rest = summary_[word / 64] & (~std::uint64_t{0} << (word % 64));
      if (rest != 0) return word / 64 * 64 + ctz(rest);
      word = (word / 64 + 1) * 64;
    }
    return words_.size();
  }

  std::vector<std::uint64_t> words_;
  std::vector<std::uint64_t> summary_;
  std::uint32_t count_ = 0;
};

}  // namespace mux
