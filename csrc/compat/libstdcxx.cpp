// SPDX-License-Identifier: Apache-2.0
//
// torch's headers make texts with std::ostringstream. As C++20, g++ 11 and newer compile its str() into a call of a
// function that the libstdc++ of older Linux systems (GLIBCXX_3.4.28, openEuler 22.03) does not have. This one is in
// the library itself, so that a library built here loads there.

#include <sstream>

#if _GLIBCXX_RELEASE >= 11
template std::string std::stringbuf::str() const&;
#endif
