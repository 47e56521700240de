// logits = x w^T, loss = sum over rows of weight (lse(z) - (1 - smoothing) z[target] - smoothing mean(z)):
//   dlogits = weight (softmax(z) - (1 - smoothing) [target] - smoothing / vocab) dz/dlogits,  dx = dlogits w,
//   dw = dlogits^T x
// Gradients are made together with the loss, chunk by chunk of rows, and only scaled in backward: logits of all rows
// never exist.
#include "autograd/ops.h"

namespace t2l {

Var cross_entropy(const Var& x, const Var& w, const Tensor& targets, const Tensor& weights, float smoothing,
                  float softcap, Tensor* losses, int64_t chunk_rows) {
  T2L_CHECK(x.value.rank() == 2 && w.value.rank() == 2 && x.dim(1) == w.dim(1), "cross_entropy of {} and {}",
            x.shape().str(), w.shape().str());
  const int64_t rows = x.dim(0), hidden = x.dim(1), vocab = w.dim(0);
  const Device device = x.value.device();
  const DType dtype = x.value.dtype();
  constexpr int64_t kChunk = 16 << 20;  // logits: 64 MB
  if (chunk_rows <= 0) chunk_rows = std::max<int64_t>(1, kChunk / std::max<int64_t>(vocab, 1));
  chunk_rows = std::min(chunk_rows, std::max<int64_t>(rows, 1));
  const bool wanted = Tape::wanted({&x, &w});
  Tensor loss = Tensor::empty({rows}, DType::F32, device);
  Tensor dx = wanted && x.needs_grad() ? Tensor::empty(x.shape(), dtype, device) : Tensor{};
  Tensor dw = wanted && w.needs_grad() ? Tensor::zeros(w.shape(), DType::F32, device) : Tensor{};
  Backend& on = backend(device);
  {
    const Tensor buffer = Tensor::empty({chunk_rows, vocab}, DType::F32, device);
    const Tensor rounded = wanted && dtype != DType::F32 ? Tensor::empty(buffer.shape(), dtype, device) : buffer;
    for (int64_t begin = 0; begin < rows; begin += chunk_rows) {
      const int64_t end = std::min(rows, begin + chunk_rows), n = end - begin;
      const Tensor xs = x.value.slice(begin, end);
      Tensor logits = buffer.slice(0, n), losses_here = loss.slice(begin, end), dlogits = rounded.slice(0, n);
      on.matmul(logits, xs, w.value, nullptr,
                {.m = n, .n = vocab, .k = hidden, .transpose_b = true, .lda = hidden, .ldb = hidden, .ldc = vocab});
      on.cross_entropy(losses_here, wanted ? &logits : nullptr, logits, targets.slice(begin, end),
                       weights.slice(begin, end), smoothing, softcap);
      if (wanted && dtype != DType::F32) on.cast(dlogits, logits, false);
      if (dx) {
        Tensor dxs = dx.slice(begin, end);
        on.matmul(dxs, dlogits, w.value, nullptr,
                  {.m = n, .n = hidden, .k = vocab, .lda = vocab, .ldb = hidden, .ldc = hidden});
      }
      if (dw)
        on.matmul(dw, dlogits, xs, nullptr,
                  {.m = vocab,
                   .n = hidden,
                   .k = n,
                   .transpose_a = true,
                   .lda = vocab,
                   .ldb = hidden,
                   .ldc = hidden,
                   .accumulate = true});
    }
  }
  Tensor sum = Tensor::empty({1}, DType::F32, device);
  on.sum_rows(sum, loss.reshape({rows, 1}), false);
  if (losses) *losses = loss;
  if (!wanted) return sum;
  return Tape::record(sum, [=, tx = GradTarget(x), tw = GradTarget(w)](const Tensor& dy) {
    const float factor = dy.to_vector<float>()[0];
    tx.write([&](Tensor& d, bool accumulate) { backend(dy).scale(d, dx, factor, accumulate); });
    tw.write([&](Tensor& d, bool accumulate) {
      Tensor scaled = dw;
      backend(dy).scale(scaled, dw, factor, false);
      backend(dy).cast(d, scaled, accumulate);
    });
  });
}

}  // namespace t2l
