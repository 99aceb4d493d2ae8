// The pooling of spikes behind a batch normalisation, in parts that stay in the caches while they go through all steps.
#pragma once

#include <algorithm>
#include <vector>

#include "../../op/norm_steps.h"
#include "../images/pooling.h"

namespace snnfast::cpu {

// The strips of the spikes [T, B, C, H, W]. In channels_last order a strip is a part of an image, as high as from one
// window to the next. In the usual order it is some whole planes. Its neurons are adjacent.
class Strips {
 public:
  int64_t number, most;  // of strips, and of neurons in one
  Pooling image;         // of what a kernel is called with: a part of an image, or a plane
  int64_t Y;             // the height of what is pooled
  bool mean;             // of a window, and not its maximum

  // `windows`: whether the mean is taken in place of the maximum, the sides of a window, and from one to the next.
  Strips(const Tensor& x, const NormSteps<CpuBackend>& steps, const std::vector<int64_t>& windows)
      : T_(steps.layout.T), N_(steps.layout.N), planes_(!steps.channels_last) {
    STD_TORCH_CHECK(windows.size() == 5 && x.dim() == 5 && x.scalar_type() == ScalarType::Float,
                    "windows: expected five numbers, and x of images in float32");
    mean = windows[0] != 0;
    const int64_t C = planes_ ? 1 : steps.C;
    image = describe_pooling(C, x.size(3), x.size(4), {windows[1], windows[2]}, {windows[3], windows[4]});
    Y = image.Y;
    images_ = planes_ ? steps.B * steps.C : steps.B;
    if (planes_) {
      together_ = std::clamp<int64_t>(kTogether / image.inputs(), 1, images_);
      most = together_ * image.inputs();
      number = (images_ + together_ - 1) / together_;
    } else {
      most = int64_t{image.stride_y} * image.W * C;
      rows_ = (image.H + image.stride_y - 1) / image.stride_y;
      number = images_ * rows_;
      of_image_ = image.inputs();
      image.H = image.kernel_y, image.Y = 1;
    }
  }

  int64_t first(int64_t i) const { return planes_ ? i * most : i / rows_ * of_image_ + i % rows_ * most; }
  int64_t last(int64_t i) const {
    if (planes_) return std::min(first(i) + most, N_);
    return i % rows_ + 1 < rows_ ? first(i + 1) : (i / rows_ + 1) * of_image_;
  }

  // Pools the spikes [T, most] of a strip. A mean has no place.
  void pool(int64_t i, const float* spk, float* pooled, uint8_t* places) const {
    for (int64_t t = 0; t < T_; ++t, spk += most) {
      each_image(t, i, [&](int64_t from, int64_t to) {
        if (mean) return pooling().average(image, spk + from, pooled + to);
        pooling().forward(image, spk + from, pooled + to, places + to);
      });
    }
  }

  // Makes the gradients [T, most] of the spikes of a strip.
  void spread(int64_t i, const float* grad, const uint8_t* places, float* of_spk) const {
    for (int64_t t = 0; t < T_; ++t, of_spk += most) {
      int64_t done = 0;
      each_image(t, i, [&](int64_t to, int64_t from) {
        done = to + image.inputs();
        if (mean) return pooling().average_backward(image, grad + from, of_spk + to);
        pooling().backward(image, grad + from, places + from, of_spk + to);
      });
      std::fill(of_spk + done, of_spk + last(i) - first(i), 0.0F);  // where no window is
    }
  }

 private:
  static constexpr int64_t kTogether = 1024;  // neurons of small planes

  int64_t T_, N_, images_, of_image_ = 0, rows_ = 1, together_ = 1;
  bool planes_;

  // Calls f(neuron of the strip, place of what is pooled) for the images in a strip, at step t.
  template <typename F>
  void each_image(int64_t t, int64_t i, F&& f) const {
    if (planes_) {
      const int64_t begin = i * together_, end = std::min(begin + together_, images_);
      for (int64_t k = begin; k < end; ++k) f((k - begin) * image.inputs(), (t * images_ + k) * image.outputs());
    } else if (i % rows_ < Y) {
      f(int64_t{0}, ((t * images_ + i / rows_) * Y + i % rows_) * image.outputs());
    }
  }
};

}  // namespace snnfast::cpu
