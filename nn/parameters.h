// The parameters of a model, by name.
//
// declare() says what there is. Then either load() gives each its values, which may stay where they are (a mapped
// file), or initialise() draws them. For training, commit() moves all trainable parameters into one slab with one slab
// of gradients, so that the optimizer, the gradient norm and a checkpoint are one kernel or one write each.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "autograd/tape.h"

namespace t2l {

// Writes a parameter's initial values into a host tensor; its random numbers are drawn by that key.
using Init = std::function<void(Tensor& values, RandomKey key)>;

namespace init {
Init constant(float value);
Init uniform(float bound);  // in [-bound, bound)
Init normal(float std = 1);
Init linear(int64_t in);  // torch.nn.Linear's weight and bias: uniform within 1 / sqrt(in)
}  // namespace init

// The stream of random numbers that belongs to a name.
uint64_t stream_of(const std::string& name);

class Parameters {
 public:
  // decays: whether AdamW's weight decay applies to it, which commonly spares norms and biases.
  void declare(std::string name, Shape shape, Init init, bool trainable = true, bool decays = true);

  bool contains(const std::string& name) const { return index_.count(name) > 0; }
  const Shape& shape(const std::string& name) const { return at(name).shape; }
  std::vector<std::string> names() const;                                           // in the order of declaration
  int64_t count(const std::string& prefix = "", bool trainable_only = true) const;  // elements

  // f32 values for one parameter, used where they lie. Error naming `from` if the shape is another.
  void load(const std::string& name, Tensor values, const std::string& from);
  // Draws what has no values yet; each parameter's numbers depend on the seed and its name alone.
  void initialise(uint64_t seed);
  // Moves what was loaded to the device, without making it trainable.
  void move_to(Device device);
  // Copies the trainable parameters into one slab on the device, each at a multiple of 64 elements, those that decay
  // first; the rest moves there.
  void commit(Device device);

  // The parameter as a variable; it wants a gradient if it is trainable and committed.
  Var operator()(const std::string& name) const;
  const Tensor& value(const std::string& name) const { return at(name).value; }

  // ---- after commit(): f32 [n], what lies between parameters is zero
  const Tensor& values() const { return values_; }
  int64_t decaying() const { return decaying_; }  // how many elements at the slab's beginning decay
  const Tensor& grads() const;                    // parameters that got no gradient since clear_grads() have zero
  void clear_grads();                             // the next gradients overwrite
  // Where a trainable parameter lies in the slab: its first element and the one behind its last. Nothing if it is
  // fixed.
  std::optional<std::pair<int64_t, int64_t>> place(const std::string& name) const;

 private:
  struct Entry {
    std::string name;
    Shape shape;
    Init init;
    bool trainable = true, decays = true;
    Tensor value;
    std::shared_ptr<Slot> slot;
  };
  const Entry& at(const std::string& name) const;
  Entry& at(const std::string& name) { return const_cast<Entry&>(std::as_const(*this).at(name)); }

  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;
  Tensor values_, grads_;
  int64_t decaying_ = 0;
};

}  // namespace t2l
