#include "nn/parameters.h"

#include <cmath>

namespace t2l {
namespace {

constexpr int64_t kAlign = 64;  // elements between the beginnings of parameters in the slab

}  // namespace

uint64_t stream_of(const std::string& name) {
  uint64_t h = 14695981039346656037ull;  // FNV-1a
  for (unsigned char c : name) h = (h ^ c) * 1099511628211ull;
  return h;
}

namespace init {

Init constant(float value) {
  return [value](Tensor& t, RandomKey) { std::fill_n(t.data<float>(), t.size(), value); };
}
Init uniform(float bound) {
  return [bound](Tensor& t, RandomKey key) { backend(t).random_uniform(t, -bound, bound, key); };
}
Init normal(float std) {
  return [std](Tensor& t, RandomKey key) { backend(t).random_normal(t, 0, std, key); };
}
Init linear(int64_t in) { return uniform(1 / std::sqrt(float(in))); }

}  // namespace init

void Parameters::declare(std::string name, Shape shape, Init init, bool trainable, bool decays) {
  T2L_CHECK(!contains(name), "parameter {} is declared twice", name);
  index_[name] = entries_.size();
  entries_.push_back({std::move(name), shape, std::move(init), trainable, decays, {}, nullptr});
}

const Parameters::Entry& Parameters::at(const std::string& name) const {
  const auto it = index_.find(name);
  T2L_CHECK(it != index_.end(), "there is no parameter {}", name);
  return entries_[it->second];
}

std::vector<std::string> Parameters::names() const {
  std::vector<std::string> names;
  for (auto& e : entries_) names.push_back(e.name);
  return names;
}

int64_t Parameters::count(const std::string& prefix, bool trainable_only) const {
  int64_t n = 0;
  for (auto& e : entries_)
    if (e.name.starts_with(prefix) && (e.trainable || !trainable_only)) n += e.shape.elements();
  return n;
}

void Parameters::load(const std::string& name, Tensor values, const std::string& from) {
  Entry& e = at(name);
  T2L_CHECK(!e.slot, "parameter {} is loaded after commit()", name);
  if (values.dtype() == DType::I32) fail("{}: tensor {} holds integers, floats are needed", from, name);
  if (!(values.shape() == e.shape))
    fail("{}: tensor {} is {}, this model needs {}; is it from another model?", from, name, values.shape().str(),
         e.shape.str());
  e.value = values.to(DType::F32);
}

void Parameters::initialise(uint64_t seed) {
  for (Entry& e : entries_) {
    if (e.value) continue;
    e.value = Tensor::zeros(e.shape);
    e.init(e.value, RandomKey{seed, stream_of(e.name)});
  }
}

void Parameters::move_to(Device device) {
  for (Entry& e : entries_) {
    T2L_CHECK(e.value, "parameter {} has no values", e.name);
    e.value = e.value.to(device);
  }
}

void Parameters::commit(Device device) {
  int64_t total = 0;
  const auto aligned = [](int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; };
  for (Entry& e : entries_)
    if (e.trainable) total += aligned(e.shape.elements());
  values_ = Tensor::zeros({total}, DType::F32, device);
  grads_ = Tensor::zeros({total}, DType::F32, device);
  int64_t begin = 0;
  for (const bool decays : {true, false}) {
    for (Entry& e : entries_) {
      if (e.decays != decays) continue;
      T2L_CHECK(e.value, "parameter {} has no values", e.name);
      if (!e.trainable) {
        e.value = e.value.to(device);
        continue;
      }
      const int64_t n = e.shape.elements();
      const Tensor place = values_.slice(begin, begin + n).reshape(e.shape);
      place.copy_from(e.value);
      e.value = place;
      e.slot = std::make_shared<Slot>();
      e.slot->grad = grads_.slice(begin, begin + n).reshape(e.shape);
      begin += aligned(n);
    }
    if (decays) decaying_ = begin;
  }
}

Var Parameters::operator()(const std::string& name) const {
  const Entry& e = at(name);
  T2L_CHECK(e.value, "parameter {} has no values", name);
  return {e.value, e.slot};
}

const Tensor& Parameters::grads() const {
  for (auto& e : entries_)
    if (e.slot && !e.slot->written) e.slot->grad.zero();
  return grads_;
}

std::optional<std::pair<int64_t, int64_t>> Parameters::place(const std::string& name) const {
  const Entry& e = at(name);
  if (!e.slot) return {};
  const int64_t begin = e.value.data<float>() - values_.data<float>();
  return std::pair(begin, begin + e.shape.elements());
}

void Parameters::clear_grads() {
  for (Entry& e : entries_)
    if (e.slot) e.slot->clear();
}

}  // namespace t2l
