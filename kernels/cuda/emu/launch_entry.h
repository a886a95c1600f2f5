// What the Rust side calls; emu_find tries the tables of all families.
extern "C" void emu_fence(const void *at, size_t bytes, int closed) {
  (void)at, (void)bytes;  // without an address sanitizer there is nothing to do
  if (closed)
    EMU_POISON(at, bytes);
  else
    EMU_UNPOISON(at, bytes);
}

extern "C" int emu_launch(const char *name, const unsigned *grid, const unsigned *block,
                          size_t shared, void **args, const size_t *sizes, size_t count,
                          int cooperative, int schedule) {
  EmuRun run{dim3(grid[0], grid[1], grid[2]),
             dim3(block[0], block[1], block[2]),
             shared,
             args,
             sizes,
             count,
             cooperative != 0,
             (emu::Schedule)schedule};
  return emu_find(name, run);
}
