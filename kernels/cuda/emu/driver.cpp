// A stand-in for the driver's library: the calls that the program makes, with the emulator behind
// them. With it the code that talks to the driver runs where there is no GPU: every check of
// gpu_parity, through modules, arena, events and graphs. It refuses what the driver would refuse:
// shared memory that was not asked for, work without a current context, a kernel that the loaded
// text does not have, a launch that cannot be resident.
//
//   g++ -std=c++20 -O1 -shared -fPIC -pthread -I kernels/cuda kernels/cuda/emu/driver.cpp
//       -Wl,--whole-archive OUT_DIR/libetude_emu.a -Wl,--no-whole-archive -o libcuda.so
//   LD_LIBRARY_PATH=. gpu_parity
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

extern "C" int emu_launch(const char *name, const unsigned *grid, const unsigned *block,
                          size_t shared, void **args, const size_t *sizes, size_t count,
                          int cooperative, int schedule);

namespace {
enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  INVALID_CONTEXT = 201,
  INVALID_PTX = 218,
  NOT_FOUND = 500,
  ILLEGAL_ADDRESS = 700,
  TOO_LARGE = 720,
  CAPTURE_UNSUPPORTED = 900,
};
constexpr int SMS = 8, SHARED_UNASKED = 48 * 1024, SHARED_MOST = 227 * 1024;

struct Function {
  std::string name;
  int shared = SHARED_UNASKED;
  std::vector<size_t> sizes;  // of the parameters, as the text declares them
};
struct Module {
  std::string text;
  std::map<std::string, Function> functions;
};
struct Event {
  std::chrono::steady_clock::time_point at;
  bool recorded = false;
};
using Step = std::function<int()>;
struct Graph {
  std::vector<Step> steps;
};

thread_local void *current = nullptr;
char the_context, the_stream;
bool capturing = false;
std::vector<Step> captured;
std::map<uint64_t, size_t> living;

bool within(uint64_t at, size_t bytes) {
  auto next = living.upper_bound(at);
  if (next == living.begin()) return false;
  auto [start, room] = *--next;
  return at - start <= room && bytes <= room - (at - start);
}

// Runs now, or when the graph does.
int queue(void *stream, Step step) {
  if (!current) return INVALID_CONTEXT;
  if (stream != &the_stream) return INVALID_VALUE;
  if (!capturing) return step();
  captured.push_back(step);
  return SUCCESS;
}

int schedule() {
  const char *name = getenv("ETUDE_EMU_SCHEDULE");
  return name ? atoi(name) : 0;
}

int run(Function *f, std::vector<unsigned> dims, unsigned shared, void *stream, void **args,
        bool cooperative) {
  unsigned threads = dims[3] * dims[4] * dims[5];
  uint64_t blocks = (uint64_t)dims[0] * dims[1] * dims[2];
  if (!blocks || !threads || threads > 1024 || dims[1] > 65535 || dims[2] > 65535)
    return INVALID_VALUE;
  if ((int)shared > f->shared) return INVALID_VALUE;
  if (cooperative && blocks > SMS) return TOO_LARGE;
  // The values are copied at once, as the driver does.
  std::vector<std::vector<char>> held;
  for (size_t i = 0; i < f->sizes.size(); i++)
    held.emplace_back((char *)args[i], (char *)args[i] + f->sizes[i]);
  return queue(stream, [=]() mutable {
    std::vector<void *> at;
    for (auto &value : held) at.push_back(value.data());
    return emu_launch(f->name.c_str(), dims.data(), dims.data() + 3, shared, at.data(),
                      f->sizes.data(), f->sizes.size(), cooperative, schedule())
               ? (int)NOT_FOUND
               : (int)SUCCESS;
  });
}

// Sizes of the parameters between the parentheses of an entry.
std::vector<size_t> parameter_sizes(const std::string &list) {
  static const std::map<std::string, size_t> SIZES = {
      {"u8", 1},  {"s8", 1},  {"b8", 1},  {"u16", 2}, {"s16", 2}, {"b16", 2}, {"u32", 4}, {"s32", 4},
      {"b32", 4}, {"f32", 4}, {"u64", 8}, {"s64", 8}, {"b64", 8}, {"f64", 8}};
  std::vector<size_t> sizes;
  for (size_t at = 0; (at = list.find(".param", at)) != std::string::npos;) {
    size_t end = list.find_first_of(",)", at);
    std::string one = list.substr(at, end - at);
    size_t bytes = 1, open = one.find('[');
    if (open != std::string::npos) bytes = strtoul(one.c_str() + open + 1, nullptr, 10);
    for (auto &[name, size] : SIZES)
      if (one.find("." + name + " ") != std::string::npos) bytes *= size;
    sizes.push_back(bytes);
    at += 6;
  }
  return sizes;
}
}  // namespace

extern "C" {
int cuInit(unsigned) { return SUCCESS; }
int cuGetErrorName(int code, const char **name) {
  static thread_local std::string text;
  text = "CUDA_ERROR_NUMBER_" + std::to_string(code);
  *name = text.c_str();
  return SUCCESS;
}
int cuGetErrorString(int code, const char **name) { return cuGetErrorName(code, name); }
int cuDeviceGetCount(int *count) {
  *count = 1;
  return SUCCESS;
}
int cuDeviceGet(int *device, int number) {
  *device = number;
  return number ? INVALID_VALUE : SUCCESS;
}
int cuDeviceGetName(char *name, int length, int) {
  snprintf(name, length, "a stand-in for a GPU");
  return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) {
  *bytes = (size_t)8 << 30;
  return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
  switch (attribute) {
    case 16: *value = SMS; return SUCCESS;
    case 38: *value = 50 << 20; return SUCCESS;
    case 75: *value = 9; return SUCCESS;
    case 76: *value = 0; return SUCCESS;
    case 97: *value = SHARED_MOST; return SUCCESS;
  }
  return INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
  *context = &the_context;
  return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *context) {
  current = context;
  return context == &the_context ? SUCCESS : INVALID_CONTEXT;
}
int cuStreamCreate(void **stream, unsigned) {
  *stream = &the_stream;
  return current ? SUCCESS : INVALID_CONTEXT;
}
int cuStreamDestroy_v2(void *) { return SUCCESS; }
int cuStreamSynchronize(void *stream) {
  if (capturing) return CAPTURE_UNSUPPORTED;
  return stream == &the_stream && current ? SUCCESS : INVALID_VALUE;
}
int cuStreamBeginCapture_v2(void *stream, int) {
  if (capturing || stream != &the_stream) return INVALID_VALUE;
  capturing = true;
  captured.clear();
  return SUCCESS;
}
int cuStreamEndCapture(void *, void **graph) {
  if (!capturing) return INVALID_VALUE;
  capturing = false;
  *graph = new Graph{captured};
  return SUCCESS;
}
int cuGraphInstantiateWithFlags(void **ready, void *graph, unsigned long long) {
  *ready = new Graph(*(Graph *)graph);
  return SUCCESS;
}
int cuGraphLaunch(void *ready, void *stream) {
  if (!current || capturing || stream != &the_stream) return INVALID_VALUE;
  for (auto &step : ((Graph *)ready)->steps)
    if (int failed = step()) return failed;
  return SUCCESS;
}
int cuGraphExecDestroy(void *ready) {
  delete (Graph *)ready;
  return SUCCESS;
}
int cuGraphDestroy(void *graph) {
  delete (Graph *)graph;
  return SUCCESS;
}
int cuModuleLoadData(void **module, const void *image) {
  if (!current) return INVALID_CONTEXT;
  auto *loaded = new Module{(const char *)image, {}};
  *module = loaded;
  if (loaded->text.find(".version") == std::string::npos) return INVALID_PTX;
  std::string mark = ".entry ";
  for (size_t at = 0; (at = loaded->text.find(mark, at)) != std::string::npos;) {
    at += mark.size();
    size_t open = loaded->text.find('(', at), close = loaded->text.find("\n)", open);
    // Of a kernel without parameters the parentheses close at once.
    if (loaded->text[open + 1] == ')') close = open + 1;
    std::string name = loaded->text.substr(at, open - at);
    loaded->functions[name] = {name, SHARED_UNASKED,
                               parameter_sizes(loaded->text.substr(open, close + 2 - open))};
  }
  return SUCCESS;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  auto &functions = ((Module *)module)->functions;
  auto found = functions.find(name);
  if (found == functions.end()) return NOT_FOUND;
  *function = &found->second;
  return SUCCESS;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (attribute != 8 || value > SHARED_MOST) return INVALID_VALUE;
  ((Function *)function)->shared = value;
  return SUCCESS;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads,
                                                size_t shared) {
  if ((int)shared > ((Function *)function)->shared || threads < 1 || threads > 1024)
    return INVALID_VALUE;
  *blocks = 1;
  return SUCCESS;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **args, void **) {
  return run((Function *)f, {gx, gy, gz, bx, by, bz}, shared, stream, args, false);
}
int cuLaunchCooperativeKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                              unsigned by, unsigned bz, unsigned shared, void *stream,
                              void **args) {
  return run((Function *)f, {gx, gy, gz, bx, by, bz}, shared, stream, args, true);
}
int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
  if (!current) return INVALID_CONTEXT;
  void *memory = bytes ? aligned_alloc(512, (bytes + 511) / 512 * 512) : nullptr;
  if (!memory) return INVALID_VALUE;
  memset(memory, 0xff, bytes);
  *at = (uint64_t)memory;
  living[*at] = bytes;
  return SUCCESS;
}
int cuMemFree_v2(uint64_t at) {
  if (!current || !living.erase(at)) return INVALID_VALUE;
  free((void *)at);
  return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  if (!within(to, bytes)) return ILLEGAL_ADDRESS;
  return queue(stream, [=] { return memcpy((void *)to, from, bytes), (int)SUCCESS; });
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  if (!within(from, bytes)) return ILLEGAL_ADDRESS;
  return queue(stream, [=] { return memcpy(to, (void *)from, bytes), (int)SUCCESS; });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  if (!within(to, bytes) || !within(from, bytes)) return ILLEGAL_ADDRESS;
  return queue(stream, [=] { return memmove((void *)to, (void *)from, bytes), (int)SUCCESS; });
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  if (!within(to, bytes)) return ILLEGAL_ADDRESS;
  return queue(stream, [=] { return memset((void *)to, value, bytes), (int)SUCCESS; });
}
int cuEventCreate(void **event, unsigned) {
  *event = new Event;
  return current ? SUCCESS : INVALID_CONTEXT;
}
int cuEventDestroy_v2(void *event) {
  delete (Event *)event;
  return SUCCESS;
}
int cuEventRecord(void *event, void *stream) {
  if (!current || stream != &the_stream) return INVALID_VALUE;
  *(Event *)event = {std::chrono::steady_clock::now(), true};
  return SUCCESS;
}
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
  auto *from = (Event *)start, *to = (Event *)end;
  if (!from->recorded || !to->recorded) return INVALID_VALUE;
  *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
  return SUCCESS;
}
}
