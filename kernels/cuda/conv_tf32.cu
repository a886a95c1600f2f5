// Convolutions whose factors are rounded to tf32; see conv_tile.cuh.
#include "conv_tile.cuh"

// Few results: small tiles, so that every multiprocessor has one.
CONV_FORWARD_KERNEL(conv_forward_tf32_32x64, 128, 4, 32, 64, 32, 16, 32, 3, 1)
CONV_DATA_KERNEL(conv_data_tf32_32x64, 128, 4, 32, 64, 32, 16, 32, 3, 1)
CONV_FILTER_KERNEL(conv_filter_tf32_32x64, 128, 4, 32, 64, 32, 16, 32, 3, 1)
// Few channels: the tile is wide along the places.
CONV_FORWARD_KERNEL(conv_forward_tf32_32x128, 256, 2, 32, 128, 32, 32, 16, 3, 1)
CONV_DATA_KERNEL(conv_data_tf32_32x128, 256, 2, 32, 128, 32, 32, 16, 3, 1)
CONV_FILTER_KERNEL(conv_filter_tf32_32x128, 256, 2, 32, 128, 32, 32, 16, 3, 1)
CONV_FORWARD_KERNEL(conv_forward_tf32_64x64, 256, 2, 64, 64, 32, 32, 16, 3, 1)
CONV_DATA_KERNEL(conv_data_tf32_64x64, 256, 2, 64, 64, 32, 32, 16, 3, 1)
CONV_FILTER_KERNEL(conv_filter_tf32_64x64, 256, 2, 64, 64, 32, 32, 16, 3, 1)
// More channels: the larger the tile, the less a product costs that its factors are gathered.
CONV_FORWARD_KERNEL(conv_forward_tf32_64x128, 256, 2, 64, 128, 32, 32, 32, 3, 1)
CONV_DATA_KERNEL(conv_data_tf32_64x128, 256, 2, 64, 128, 32, 32, 32, 3, 1)
CONV_FILTER_KERNEL(conv_filter_tf32_64x128, 256, 2, 64, 128, 32, 32, 32, 3, 1)
CONV_FORWARD_KERNEL(conv_forward_tf32_128x128, 256, 1, 128, 128, 16, 64, 32, 4, 1)
CONV_DATA_KERNEL(conv_data_tf32_128x128, 256, 1, 128, 128, 16, 64, 32, 4, 1)
CONV_FILTER_KERNEL(conv_filter_tf32_128x128, 256, 1, 128, 128, 16, 64, 32, 4, 1)
