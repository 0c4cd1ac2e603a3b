// What each part of the extension adds to the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace quickmatch {

void bind_decoder(nanobind::module_& m);
void bind_speculation(nanobind::module_& m);

}  // namespace quickmatch
