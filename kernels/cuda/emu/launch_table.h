// From a kernel's name and an array of pointers to its parameters to a typed call.
#pragma once
#include <tuple>

struct EmuRun {
  dim3 grid, block;
  size_t shared;
  void **args;
  const size_t *sizes;  // null: not told
  size_t count;
  bool cooperative;
  emu::Schedule schedule;
};

// 0: done; 2: the parameters have other sizes.
template <class... A, size_t... I>
int emu_call_indexed(void (*kernel)(A...), const EmuRun &run, std::index_sequence<I...>) {
  if (run.sizes && (run.count != sizeof...(A) || !((run.sizes[I] == sizeof(A)) && ...))) return 2;
  std::tuple<A...> values{*(A *)run.args[I]...};
  emu::launch(run.grid, run.block, run.shared, [&] { std::apply(kernel, values); },
              run.cooperative, run.schedule);
  return 0;
}
template <class... A>
int emu_call(void (*kernel)(A...), const EmuRun &run) {
  return emu_call_indexed(kernel, run, std::index_sequence_for<A...>{});
}
