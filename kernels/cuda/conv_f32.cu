// Convolutions with three tf32 products for one of f32; see conv_tile.cuh.
#include "conv_tile.cuh"

CONV_FORWARD_KERNEL(conv_forward_f32_32x64, 128, 4, 32, 64, 32, 16, 32, 3, 3)
CONV_DATA_KERNEL(conv_data_f32_32x64, 128, 4, 32, 64, 32, 16, 32, 3, 3)
CONV_FILTER_KERNEL(conv_filter_f32_32x64, 128, 4, 32, 64, 32, 16, 32, 3, 3)
CONV_FORWARD_KERNEL(conv_forward_f32_64x64, 256, 2, 64, 64, 32, 32, 16, 3, 3)
CONV_DATA_KERNEL(conv_data_f32_64x64, 256, 2, 64, 64, 32, 32, 16, 3, 3)
CONV_FILTER_KERNEL(conv_filter_f32_64x64, 256, 2, 64, 64, 32, 32, 16, 3, 3)
