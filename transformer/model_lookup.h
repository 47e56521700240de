// From the name of a model, as a checkpoint or a user spells it, to its folder on this machine. Nothing is downloaded.
#pragma once
#include <string>

namespace t2l {

// `name` is a folder; or ORG/MODEL, looked for as T2L_MODELS/ORG/MODEL and T2L_MODELS/MODEL under each folder of the
// colon-separated T2L_MODELS, then in the Hugging Face cache (HF_HUB_CACHE, HF_HOME, else ~/.cache/huggingface).
// Error that says where it was looked for; `remedy` is the caller's advice, "name its folder with --encoder".
std::string find_model(const std::string& name, const std::string& remedy);

}  // namespace t2l
