// Scores of answers as texts, wherever they were made. Error for a text of more than 64 MiB.
#pragma once
#include <string>

namespace t2l {

// Are the texts equal once signs are folded (full-width letters, digits of any script, quotes, dashes, invisible
// characters), white space collapsed, punctuation stripped from the ends and all in lower case? Plain numbers are
// compared as numbers (1,000 equals 1000.0). A reference of punctuation alone must be matched as it is.
bool exact_answer(const std::string& output, const std::string& reference);

// ROUGE-L (Lin, "ROUGE", 2004): the F-measure of the longest common subsequence of the texts' tokens, runs of a-z and
// 0-9 in lower case, those of more than three characters stemmed, as rouge-score has it with use_stemmer. A reference
// without such a token must be matched as it is. Error for a text of more than 2^15 tokens.
double rouge_l(const std::string& output, const std::string& reference);

}  // namespace t2l
