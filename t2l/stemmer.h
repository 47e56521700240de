// Porter's stemmer (Porter, "An algorithm for suffix stripping", 1980) with the extensions of NLTK's, which the usual
// implementation of ROUGE has: irregular forms, short words in -ies and -ied, -alli, -fulli, -logi, y behind a
// consonant.
#pragma once
#include <string>

namespace t2l {

// word: lower case ASCII letters and digits.
std::string porter_stem(std::string word);

}  // namespace t2l
