// Every kernel of shaders/cuda, for the host.
#include "convolution.cu"
#include "grid_sample.cu"
#include "keypoints.cu"
#include "maps.cu"
#include "motion.cu"
#include "pack.cu"
#include "resample.cu"
#include "tensor_cores.cu"
