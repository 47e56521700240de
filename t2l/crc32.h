// CRC-32 as zip files use it (reflected, polynomial 0x04C11DB7), at memory speed.
#pragma once
#include <cstdint>

#include "tensor/file.h"

namespace t2l {

uint32_t crc32(Bytes bytes);

}  // namespace t2l
