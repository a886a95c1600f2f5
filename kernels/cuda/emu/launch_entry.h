// What the Rust side calls; emu_find tries the tables of all families.
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
