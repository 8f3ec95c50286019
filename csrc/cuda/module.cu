// The CUDA library's anchor: operators register themselves from their own files beside this one.
namespace drocc::cuda {

// Looked up by nobody yet; it keeps an otherwise empty library from being rejected by some linkers.
extern "C" int drocc_cuda_abi() {
  return 1;
}

}  // namespace drocc::cuda
