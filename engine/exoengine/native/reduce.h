// Sums, maxima and minima of what all ranks contributed, in rank order: the same bits on every rank.
//
// float16, bfloat16 and float32 are summed in float32 and rounded once; float64 and complex64 in their own kind.
// Integers are exact (they wrap around, as in MLX); a sum of booleans is true where any is. A maximum or minimum
// with a NaN in it is that NaN.
#pragma once

#include <algorithm>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "mlx/dtype.h"

namespace exod {

enum class Reduction { sum, max, min };

// A tile of so many elements is summed rank by rank: it stays in the first-level cache, and compilers vectorise it.
constexpr size_t TILE = 1024;

template <typename T>
struct Wide {  // what a sum of T is kept in
  using type = std::conditional_t<std::is_same_v<T, mlx::core::float16_t> || std::is_same_v<T, mlx::core::bfloat16_t>,
                                  float, T>;
};
template <>
struct Wide<mlx::core::complex64_t> {
  using type = std::complex<float>;
};

template <typename T>
auto widen(T value) {
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
    return static_cast<std::make_unsigned_t<T>>(value);  // signed integers may not overflow, unsigned ones wrap
  else
    return static_cast<typename Wide<T>::type>(value);
}

template <typename T>
T pick(T a, T b, bool largest) {
  if constexpr (!std::is_integral_v<T> && !std::is_same_v<T, mlx::core::complex64_t>) {
    float of_a = static_cast<float>(a), of_b = static_cast<float>(b);
    if (of_a != of_a) return a;
    if (of_b != of_b) return b;
  }
  return (largest ? b > a : b < a) ? b : a;
}

// `parts` are the contributions by rank, `n` elements each; `out` may be one of them.
template <typename T>
void reduce_as(Reduction kind, const std::vector<const char*>& parts, char* out, size_t n) {
  using W = decltype(widen(T{}));
  auto* result = reinterpret_cast<T*>(out);
  if (kind != Reduction::sum) {
    for (size_t i = 0; i < n; i++) {
      T best = reinterpret_cast<const T*>(parts[0])[i];
      for (size_t r = 1; r < parts.size(); r++)
        best = pick(best, reinterpret_cast<const T*>(parts[r])[i], kind == Reduction::max);
      result[i] = best;
    }
    return;
  }
  W tile[TILE];
  for (size_t begin = 0; begin < n; begin += TILE) {
    size_t count = std::min(TILE, n - begin);
    const T* first = reinterpret_cast<const T*>(parts[0]) + begin;
    for (size_t i = 0; i < count; i++) tile[i] = widen(first[i]);
    for (size_t r = 1; r < parts.size(); r++) {
      const T* part = reinterpret_cast<const T*>(parts[r]) + begin;
      for (size_t i = 0; i < count; i++) {
        if constexpr (std::is_same_v<T, bool>)
          tile[i] = tile[i] || part[i];
        else
          tile[i] = static_cast<W>(tile[i] + widen(part[i]));
      }
    }
    for (size_t i = 0; i < count; i++) result[begin + i] = static_cast<T>(tile[i]);
  }
}

inline void reduce(Reduction kind, mlx::core::Dtype dtype, const std::vector<const char*>& parts, char* out, size_t n) {
  using Val = mlx::core::Dtype::Val;
  switch (dtype.val()) {
    case Val::bool_: return reduce_as<bool>(kind, parts, out, n);
    case Val::uint8: return reduce_as<uint8_t>(kind, parts, out, n);
    case Val::uint16: return reduce_as<uint16_t>(kind, parts, out, n);
    case Val::uint32: return reduce_as<uint32_t>(kind, parts, out, n);
    case Val::uint64: return reduce_as<uint64_t>(kind, parts, out, n);
    case Val::int8: return reduce_as<int8_t>(kind, parts, out, n);
    case Val::int16: return reduce_as<int16_t>(kind, parts, out, n);
    case Val::int32: return reduce_as<int32_t>(kind, parts, out, n);
    case Val::int64: return reduce_as<int64_t>(kind, parts, out, n);
    case Val::float16: return reduce_as<mlx::core::float16_t>(kind, parts, out, n);
    case Val::bfloat16: return reduce_as<mlx::core::bfloat16_t>(kind, parts, out, n);
    case Val::float32: return reduce_as<float>(kind, parts, out, n);
    case Val::float64: return reduce_as<double>(kind, parts, out, n);
    case Val::complex64: return reduce_as<mlx::core::complex64_t>(kind, parts, out, n);
  }
}

}  // namespace exod
