// A product with a weight matrix and what follows it, differentiable, as Python sees it.
//
// Every step goes through PyTorch's dispatcher, so that its compiler can see it.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "checks.h"

namespace gptx {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// An operation without gradients of its own.
template <class Signature>
class Operation {
 public:
  explicit Operation(const char* name)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>()) {}

  template <class... Arguments>
  auto operator()(Arguments&&... arguments) const {
    const at::AutoDispatchBelowADInplaceOrView no_gradients;
    return handle_.call(std::forward<Arguments>(arguments)...);
  }

 private:
  c10::TypedOperatorHandle<Signature> handle_;
};

// x @ weight.T + bias
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                   const std::string& variant) {
  static const Operation<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                    c10::string_view)>
      product_of("gptx::product");
  return product_of(x, weight, bias, variant);
}

at::Tensor add_bias_and_activate(at::Tensor x, const OptionalTensor& bias, const std::string& variant) {
  static const Operation<at::Tensor(at::Tensor&, const OptionalTensor&, c10::string_view)> bias_gelu(
      "gptx::bias_gelu_");
  return bias_gelu(x, bias, variant);
}

at::Tensor before_activation(const at::Tensor& grad, const at::Tensor& x, const std::string& variant) {
  static const Operation<at::Tensor(const at::Tensor&, const at::Tensor&, c10::string_view)>
      gelu_backward("gptx::gelu_backward");
  return gelu_backward(grad.to(at::kFloat).contiguous(), x, variant).to(grad.scalar_type());
}

void add_gradients(const at::Tensor& grad, const at::Tensor& x, at::Tensor weight,
                   const OptionalTensor& bias, const std::string& variant) {
  static const Operation<void(const at::Tensor&, const at::Tensor&, at::Tensor&, const OptionalTensor&,
                              c10::string_view)>
      add_weight_gradient("gptx::add_weight_gradient_");
  add_weight_gradient(grad.contiguous(), x.contiguous(), weight, bias, variant);
}

// (n, m), whatever comes before the last dimension of x.
at::Tensor rows_of(const at::Tensor& x) { return x.dim() == 1 ? x.unsqueeze(0) : x.flatten(0, -2); }

at::Tensor like(const at::Tensor& rows, const at::Tensor& x) {
  c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
  shape.back() = rows.sym_size(1);
  // No view, which PyTorch would refuse to change in place.
  return at::_unsafe_view_symint(rows, shape);
}

// The backward pass needs the activation's input, so the forward pass keeps it.
struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, bool activated, const std::string& variant) {
    context->saved_data["variant"] = variant;
    context->saved_data["has_bias"] = bias && bias->defined();
    const at::Tensor rows = rows_of(x);
    if (!activated) {
      context->save_for_backward({x, weight});
      return like(product(rows, weight, bias, variant), x);
    }
    // A narrow type is rounded once, after the bias is added.
    const bool wide = x.scalar_type() == at::kFloat;
    const at::Tensor before = product(rows, weight, wide ? std::nullopt : bias, variant).to(at::kFloat);
    context->save_for_backward({x, weight, before});
    const at::Tensor out = add_bias_and_activate(before, wide ? bias : std::nullopt, variant);
    return like(out.to(x.scalar_type()), x);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "the fused linear cannot be differentiated with create_graph: its gradients have none of "
                "their own");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const std::string& variant = context->saved_data["variant"].toStringRef();
    const bool has_bias = context->saved_data["has_bias"].toBool();
    at::Tensor grad = rows_of(grads[0]);
    if (saved.size() > 2) grad = before_activation(grad, saved[2], variant);

    Variable grad_x, grad_weight, grad_bias;
    if (context->needs_input_grad(0)) grad_x = like(product(grad, weight.t(), {}, variant), x);
    const bool needs_weight = context->needs_input_grad(1);
    const bool needs_bias = has_bias && context->needs_input_grad(2);
    if (needs_weight && x.scalar_type() == at::kFloat) {
      grad_weight = at::zeros_like(weight, {}, at::MemoryFormat::Contiguous);
      OptionalTensor sums;
      if (needs_bias) sums = grad_bias = at::zeros_symint({weight.sym_size(0)}, grad.options());
      add_gradients(grad, rows_of(x), grad_weight, sums, variant);
    } else {
      if (needs_weight) grad_weight = at::matmul(grad.t(), rows_of(x));
      if (needs_bias) grad_bias = grad.sum(0);
    }
    return {grad_x, grad_weight, grad_bias, {}, {}};
  }
};

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                  std::optional<c10::string_view> activation, c10::string_view variant) {
  TORCH_CHECK(!activation || *activation == "gelu", "activation must be gelu or None, got ", *activation);
  return Linear::apply(x, weight, bias, activation.has_value(), std::string(variant));
}

}  // namespace
}  // namespace gptx

TORCH_LIBRARY_FRAGMENT(gptx, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias, str? activation, str variant='best') -> Tensor",
              &gptx::linear);
}
