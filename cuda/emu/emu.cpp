// The scheduler. Threads are fibers that switch among themselves: whoever has to wait picks the next runnable thread of
// its warp, else resolves what the warp's lanes have all arrived at, else goes on to the next warp, else opens the
// barrier. A thread that never waits costs no switch: the fiber that runs it goes on to the next thread's start.
// Compiled without -fsanitize=thread even where all else has it, so that its own bookkeeping is never reported.
#include "cuda/emu/emu.h"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <vector>

// Null unless the program is linked with the sanitizer.
extern "C" {
#define WEAK __attribute__((weak))
WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
WEAK void __asan_unpoison_memory_region(const volatile void*, size_t);
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* address);
WEAK void __tsan_release(void* address);
WEAK void __tsan_java_init(uintptr_t begin, uintptr_t size);
WEAK void __tsan_java_alloc(uintptr_t p, uintptr_t size);
WEAK void __tsan_java_free(uintptr_t p, uintptr_t size);
}

namespace t2l::emu {

Thread* self;
dim3 block_dim, grid_dim;
unsigned char* dynamic_smem;

namespace {

namespace context = boost::context::detail;

bool asan() { return __sanitizer_start_switch_fiber; }
bool tsan() { return __tsan_create_fiber; }

constexpr unsigned kMaxThreads = 1024, kWarp = 32;
constexpr size_t kMaxDynamicBytes = 163 * 1024;  // A100, the smallest device we ship for
constexpr size_t kCanary = 64, kPage = 4096;
constexpr size_t kTsanStack = 16 * 1024;  // of it, what kernels use

// ---- fibers ---------------------------------------------------------------------------------------------------------

// Something that can be switched to: a fiber or the host thread that called run.
struct Context {
  context::fcontext_t at = nullptr;
  char *stack = nullptr, *top = nullptr;  // its lowest address, and where it begins to grow down
  const void* bottom = nullptr;
  size_t size = 0;
  void *fake_stack = nullptr, *tsan_fiber = nullptr;
  bool used = false;  // since ThreadSanitizer last forgot its stack
};

constexpr unsigned kMaxCopies = 256;  // that a thread may have under way

struct Queued : Copy {
  unsigned group;
};

struct Lane : Thread {
  Context* fiber;  // null before the thread starts and after it ends
  Site site;       // where it waits
  unsigned mask;
  bool vote, parity;
  void* payload;
  Resolve resolve;
  void* tsan_fiber;
  unsigned group, first, last;  // cp.async: the open group; the copies under way, [first, last) mod kMaxCopies
  Queued copies[kMaxCopies];
};

struct Warp {
  unsigned ready, at_warp, at_barrier, live;  // masks of lanes
};

Lane lanes[kMaxThreads];
Warp warps[kMaxThreads / kWarp];
unsigned warp_order[kMaxThreads / kWarp];
unsigned threads, warp_count, turn;  // of the block; whose turn it is in warp_order
int votes;                           // at the barrier that opened last

Order order = Order::Ascending;
unsigned seed = 0;
// splitmix64. Not one of <random>: the linker may keep another file's copy of its functions, which ThreadSanitizer
// sees.
struct {
  uint64_t state = 0;
  void seed(uint64_t s) { state = s; }
  unsigned operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return unsigned((z ^ z >> 31) >> 32);
  }
} rng;

Body body;
Context host;
Context fibers[kMaxThreads], *free_fibers[kMaxThreads];
unsigned free_count;
std::exception_ptr error;
size_t switch_count;

// ThreadSanitizer's happens-before edges. Two of each, since a fast thread may reach the next barrier before a slow
// one has left this one.
char block_token[2], warp_token[kMaxThreads][2], start_token, done_token;
bool block_parity;

Lane& me() { return *static_cast<Lane*>(self); }

size_t stack_bytes() { return asan() || tsan() ? 256 * 1024 : 64 * 1024; }

void arrived(Context& here, context::transfer_t t) {
  Context& from = *static_cast<Context*>(t.data);
  from.at = t.fctx;
  if (asan()) __sanitizer_finish_switch_fiber(here.fake_stack, &from.bottom, &from.size);
}

void jump(Context& from, Context& to) {
  ++switch_count;
  if (tsan()) __tsan_switch_to_fiber(to.tsan_fiber, 1 /* not a synchronisation */);
  if (asan()) __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
  arrived(from, context::jump_fcontext(to.at, &from));
}

void run_threads(context::transfer_t);

void reset(Context& fiber, unsigned i) {
  const size_t bytes = stack_bytes();
  if (asan()) __asan_unpoison_memory_region(fiber.stack, bytes);
  // Staggered, or the busy ends of all stacks would share a few cache sets.
  fiber.top = fiber.stack + bytes - i % 32 * 320;
  fiber.at = context::make_fcontext(fiber.top, bytes / 2, run_threads);
  fiber.bottom = fiber.stack;
  fiber.size = bytes;
  fiber.fake_stack = nullptr;
}

// Everything a fiber may touch is allocated here, in advance: under ThreadSanitizer malloc itself would be seen to
// race.
void make_fibers() {
  if (fibers[0].stack) return;
  const size_t each = stack_bytes() + kPage;
  void* p =
      mmap(nullptr, kMaxThreads * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("emulator: no memory for the stacks of {} CUDA threads", kMaxThreads);
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    char* guard = static_cast<char*>(p) + i * each;
    mprotect(guard, kPage, PROT_NONE);
    fibers[i].stack = guard + kPage;
  }
}

void reset_fibers() {
  free_count = 0;
  for (unsigned i = kMaxThreads; i-- > 0;) {
    reset(fibers[i], i);
    free_fibers[free_count++] = &fibers[i];
  }
}

// ---- the executable's symbols ---------------------------------------------------------------------------------------
// Read from its own file: the static shared variables, known by their tag, and the names of kernels.

struct Symbols {
  struct Variable {
    char* p;
    size_t bytes;
  };
  std::vector<Variable> shared;
  std::string text;  // a copy of the string table
  std::vector<Elf64_Sym> functions;
  uintptr_t base = 0;

  Symbols() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {  // the executable comes first
          *static_cast<uintptr_t*>(out) = info->dlpi_addr;
          return 1;
        },
        &base);
    const int file = open("/proc/self/exe", O_RDONLY);
    struct stat s = {};
    if (file < 0 || fstat(file, &s)) fail("emulator: cannot read /proc/self/exe");
    void* image = mmap(nullptr, size_t(s.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (image == MAP_FAILED) fail("emulator: cannot map /proc/self/exe");
    read(static_cast<const char*>(image));
    munmap(image, size_t(s.st_size));
    if (text.empty())
      fail("emulator: the executable has no symbol table, by which shared memory is found: do not strip");
  }

  void read(const char* image) {
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image);
    const auto* sections = reinterpret_cast<const Elf64_Shdr*>(image + header->e_shoff);
    for (unsigned i = 0; i < header->e_shnum; ++i) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      const auto* symbols = reinterpret_cast<const Elf64_Sym*>(image + sections[i].sh_offset);
      const Elf64_Shdr& names = sections[sections[i].sh_link];
      text.assign(image + names.sh_offset, names.sh_size);
      for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k) {
        const Elf64_Sym& symbol = symbols[k];
        const std::string_view name = text.c_str() + symbol.st_name;
        if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC) functions.push_back(symbol);
        if (ELF64_ST_TYPE(symbol.st_info) == STT_OBJECT && name.find("10t2l_shared") != name.npos)
          shared.push_back({reinterpret_cast<char*>(base + symbol.st_value), symbol.st_size});
      }
    }
  }

  std::string name_of(const void* function) const {
    for (const Elf64_Sym& symbol : functions) {
      if (base + symbol.st_value != reinterpret_cast<uintptr_t>(function)) continue;
      int status = 0;
      char* plain = abi::__cxa_demangle(text.c_str() + symbol.st_name, nullptr, nullptr, &status);
      std::string name = status == 0 ? plain : text.c_str() + symbol.st_name;
      std::free(plain);
      constexpr std::string_view kNoise[] = {"(anonymous namespace)::", "void "};
      for (const std::string_view noise : kNoise)
        for (size_t at; (at = name.find(noise)) != name.npos;) name.erase(at, noise.size());
      return name.substr(0, name.find('('));
    }
    return "?";
  }
};

const Symbols& symbols() {
  static const Symbols s;
  return s;
}

// ---- scheduling -----------------------------------------------------------------------------------------------------

std::string describe(const Lane& lane) {
  return fmt::format("thread ({},{},{})", lane.thread.x, lane.thread.y, lane.thread.z);
}
std::string describe(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return fmt::format("{} ({}:{})", site.call, slash ? slash + 1 : site.file, site.line);
}

[[noreturn]] void fault_at(const Lane& lane, const std::string& what) {
  fail("emulator: kernel {}, block ({},{},{}), {}: {}", symbols().name_of(body.kernel), lane.block.x, lane.block.y,
       lane.block.z, describe(lane), what);
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)) && !std::strcmp(a.call, b.call);
}

unsigned pick(unsigned mask) {
  if (order == Order::Ascending) return unsigned(std::countr_zero(mask));
  if (order == Order::Descending) return 31 - unsigned(std::countl_zero(mask));
  for (unsigned skip = rng() % unsigned(std::popcount(mask)); skip; --skip) mask &= mask - 1;
  return unsigned(std::countr_zero(mask));
}

template <class T>
void arrange(T* a, unsigned n) {
  for (unsigned i = 0; i < n; ++i) a[i] = T(order == Order::Descending ? n - 1 - i : i);
  if (order == Order::Shuffled)
    for (unsigned i = n; i > 1; --i) std::swap(a[i - 1], a[rng() % i]);
}

// A collective happens once every live lane of its mask has arrived at it.
void resolve(Warp& w, Lane* lane) {
  for (unsigned left = w.at_warp; left;) {
    Lane& f = lane[std::countr_zero(left)];
    const unsigned group = f.mask & w.live;
    bool complete = !(group & ~w.at_warp);
    void* payload[kWarp] = {};
    for (unsigned g = group & w.at_warp; g; g &= g - 1) {
      Lane& other = lane[std::countr_zero(g)];
      payload[std::countr_zero(g)] = other.payload;
      if (other.mask != f.mask)
        complete = false;
      else if (!same(other.site, f.site))
        fault_at(f, fmt::format("divergence: waits at {} with mask {:#x} while {} waits at {}", describe(f.site),
                                f.mask, describe(other), describe(other.site)));
    }
    left &= left - 1;
    if (!complete) continue;
    f.resolve(payload, group);
    w.at_warp &= ~group;
    w.ready |= group;
    left &= ~group;
  }
  if (w.ready) return;
  const Lane& f = lane[std::countr_zero(w.at_warp)];
  unsigned g = f.mask & w.live;
  while (w.at_warp >> std::countr_zero(g) & 1 && lane[std::countr_zero(g)].mask == f.mask) g &= g - 1;
  const Lane& other = lane[std::countr_zero(g)];
  fault_at(f, fmt::format("divergence: waits at {} with mask {:#x} for {}, which waits at {}", describe(f.site), f.mask,
                          describe(other), describe(other.site)));
}

// All live threads are at a barrier: the same one, or the kernel is wrong.
void open_barrier() {
  const Lane* first = nullptr;
  votes = 0;
  for (unsigned w = 0; w < warp_count; ++w) {
    for (unsigned m = warps[w].at_barrier; m; m &= m - 1) {
      const Lane& lane = lanes[w * kWarp + unsigned(std::countr_zero(m))];
      if (!first) first = &lane;
      if (!same(first->site, lane.site))
        fault_at(*first, fmt::format("divergent barrier: waits at {} while {} waits at {}", describe(first->site),
                                     describe(lane), describe(lane.site)));
      votes += lane.vote;
    }
    warps[w].ready = warps[w].at_barrier;
    warps[w].at_barrier = 0;
  }
  block_parity ^= 1;
  if (order == Order::Shuffled) arrange(warp_order, warp_count);
}

// The thread to run next, or null when all have ended.
Lane* next_thread() {
  for (;;) {
    for (; turn < warp_count; ++turn) {
      const unsigned w = warp_order[turn];
      if (!warps[w].ready && warps[w].at_warp) resolve(warps[w], lanes + w * kWarp);
      if (!warps[w].ready) continue;
      const unsigned lane = pick(warps[w].ready);
      warps[w].ready &= ~(1u << lane);
      return &lanes[w * kWarp + lane];
    }
    turn = 0;
    bool live = false;
    for (unsigned w = 0; w < warp_count; ++w) live |= warps[w].live != 0;
    if (!live) return nullptr;
    open_barrier();
  }
}

Context& fiber_of(Lane& lane) {
  if (!lane.fiber) {
    lane.fiber = free_fibers[--free_count];
    lane.fiber->tsan_fiber = lane.tsan_fiber;
    lane.fiber->used = true;
  }
  return *lane.fiber;
}

void wait() {
  Lane& lane = me();
  Lane* next = next_thread();  // there is one: this thread has not ended
  if (next == &lane) return;
  self = next;
  jump(*lane.fiber, fiber_of(*next));
}

// What every fiber does for ever.
void run_threads(context::transfer_t t) {
  Context& fiber = *me().fiber;
  arrived(fiber, t);
  for (;;) {
    Lane* next = nullptr;
    try {
      if (tsan()) __tsan_acquire(&start_token);
      body.call(body.closure);
      Lane& lane = me();
      if (tsan()) {  // who has ended counts as arrived everywhere
        __tsan_release(&done_token);
        __tsan_release(&block_token[block_parity]);
        for (char& token : warp_token[lane.linear]) __tsan_release(&token);
      }
      warps[lane.linear / kWarp].live &= ~(1u << lane.linear % kWarp);
      lane.fiber = nullptr;
      next = next_thread();
    } catch (...) {
      error = std::current_exception();
      if (tsan()) __tsan_release(&done_token);
    }
    // ThreadSanitizer is to see a fiber of its own for every thread.
    if (next && !next->fiber && !tsan()) {
      next->fiber = &fiber;
      self = next;
      continue;
    }
    self = next;
    Context& to = next ? fiber_of(*next) : host;
    free_fibers[free_count++] = &fiber;
    jump(fiber, to);
  }
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

// ThreadSanitizer is to forget what earlier blocks did here: they are unordered with this one, but do not share it.
void forget(void* p, size_t bytes) {
  // Its interface for the Java heap does that. The heap it is told of is a dummy: reports would search a real one.
  alignas(8) static char heap[8];
  static const bool ready = (__tsan_java_init(reinterpret_cast<uintptr_t>(heap), sizeof(heap)), true);
  (void)ready;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p) & ~uintptr_t(7),
                  end = (reinterpret_cast<uintptr_t>(p) + bytes + 7) & ~uintptr_t(7);
  __tsan_java_alloc(begin, end - begin);
  __tsan_java_free(begin, end - begin);
}

// ThreadSanitizer's idea of the threads. Neighbouring blocks get different ones, unordered; more than a few sets would
// cost more than they find.
constexpr unsigned kTsanSets = 3;
void* tsan_fibers[kTsanSets][kMaxThreads];

void prepare_block(dim3 grid, dim3 block, size_t b, size_t dynamic_bytes, size_t count) {
  const auto blank = [](void* p, size_t bytes) {
    if (tsan()) forget(p, bytes);
    poison(p, bytes);
  };
  blank(dynamic_smem, dynamic_bytes + kCanary);
  for (const auto& variable : symbols().shared) blank(variable.p, variable.bytes);
  if (tsan()) {
    for (Context& fiber : fibers)
      if (std::exchange(fiber.used, false)) forget(fiber.top - kTsanStack, kTsanStack);
  }
  const uint3 at = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
  uint3 thread = {0, 0, 0};
  for (unsigned i = 0; i < threads; ++i) {
    Lane& lane = lanes[i];
    lane.thread = thread;
    lane.block = at;
    lane.linear = i;
    lane.fiber = nullptr;
    lane.parity = false;
    lane.group = lane.first = lane.last = 0;
    if (tsan()) {
      void*& fiber = tsan_fibers[count % kTsanSets][i];
      if (!fiber) fiber = __tsan_create_fiber(0);
      lane.tsan_fiber = fiber;
    }
    if (++thread.x == block.x) thread.x = 0, ++thread.y;
    if (thread.y == block.y) thread.y = 0, ++thread.z;
  }
  for (unsigned w = 0; w < warp_count; ++w) {
    const unsigned n = std::min(kWarp, threads - w * kWarp), all = n == kWarp ? ~0u : (1u << n) - 1;
    warps[w] = {all, 0, 0, all};
  }
  arrange(warp_order, warp_count);
  turn = 0;
  block_parity = false;
  if (tsan()) __tsan_release(&start_token);
}

bool schedule_is_set = false;

void read_environment() {
  if (schedule_is_set) return;
  schedule_is_set = true;
  if (const char* text = std::getenv("T2L_EMU_SCHEDULE")) set_schedule(std::string(text));
}

}  // namespace

void set_schedule(Order o, unsigned s) {
  schedule_is_set = true;
  order = o;
  seed = s;
}

void set_schedule(const std::string& text) {
  const bool shuffled = text.starts_with("shuffled");
  const std::string rest = shuffled ? text.substr(8) : "";
  const bool numbered =
      rest.size() > 1 && rest.size() < 10 && rest[0] == ':' && rest.find_first_not_of("0123456789", 1) == rest.npos;
  if (text == "ascending")
    set_schedule(Order::Ascending);
  else if (text == "descending")
    set_schedule(Order::Descending);
  else if (shuffled && (rest.empty() || numbered))
    set_schedule(Order::Shuffled, numbered ? unsigned(std::stoul(rest.substr(1))) : 1);
  else
    fail("T2L_EMU_SCHEDULE is '{}': give ascending, descending, shuffled or shuffled:SEED", text);
}

size_t switches() { return switch_count; }

void poison(void* p, size_t bytes) { std::memset(p, 0xff, bytes); }

void fault(const std::string& what) { fault_at(me(), what); }

int barrier(Site site, bool vote) {
  Lane& lane = me();
  Warp& w = warps[lane.linear / kWarp];
  lane.site = site;
  lane.vote = vote;
  const bool parity = block_parity;
  if (tsan()) __tsan_release(&block_token[parity]);
  w.at_barrier |= 1u << lane.linear % kWarp;
  wait();
  if (tsan()) __tsan_acquire(&block_token[parity]);
  return votes;
}

void collective(Site site, unsigned mask, void* payload, Resolve resolve) {
  Lane& lane = me();
  Warp& w = warps[lane.linear / kWarp];
  const unsigned bit = 1u << lane.linear % kWarp;
  lane.site = site;
  lane.mask = mask;
  lane.payload = payload;
  lane.resolve = resolve;
  if (!(mask & bit)) fault(fmt::format("calls {} with mask {:#x}, which lacks its own lane", describe(site), mask));
  w.at_warp |= bit;
  wait();
}

namespace {
struct Exchange {
  uint64_t in, out;
  int source;
  bool found;
};
struct Vote {
  bool in;
  unsigned out;
};
}  // namespace

uint64_t exchange(Site site, unsigned mask, uint64_t value, int source_lane) {
  Exchange x{value, 0, source_lane, false};
  collective(site, mask, &x, [](void* const payload[32], unsigned group) {
    for (unsigned g = group; g; g &= g - 1) {
      auto& to = *static_cast<Exchange*>(payload[std::countr_zero(g)]);
      const void* from = unsigned(to.source) < kWarp ? payload[to.source] : nullptr;
      to.found = from;
      if (from) to.out = static_cast<const Exchange*>(from)->in;
    }
  });
  if (!x.found)
    fault(fmt::format("{} with mask {:#x} reads lane {}, which has exited or is not in the mask", describe(site), mask,
                      source_lane));
  return x.out;
}

unsigned ballot(Site site, unsigned mask, bool vote) {
  Vote v{vote, 0};
  collective(site, mask, &v, [](void* const payload[32], unsigned group) {
    unsigned result = 0;
    for (unsigned g = group; g; g &= g - 1)
      result |= unsigned(static_cast<const Vote*>(payload[std::countr_zero(g)])->in) << std::countr_zero(g);
    for (unsigned g = group; g; g &= g - 1) static_cast<Vote*>(payload[std::countr_zero(g)])->out = result;
  });
  return v.out;
}

void warp_barrier(Site site, unsigned mask) {
  Lane& lane = me();
  lane.parity ^= 1;
  if (tsan()) __tsan_release(&warp_token[lane.linear][lane.parity]);
  const unsigned parities = ballot(site, mask, lane.parity);
  if (!tsan()) return;
  const unsigned first = lane.linear / kWarp * kWarp;
  for (unsigned m = mask; m; m &= m - 1) {
    const unsigned k = unsigned(std::countr_zero(m));
    __tsan_acquire(&warp_token[first + k][parities >> k & 1]);
  }
}

void queue_copy(const Copy& copy) {
  Lane& lane = me();
  if (lane.last - lane.first == kMaxCopies) fault(fmt::format("more than {} cp.async under way", kMaxCopies));
  lane.copies[lane.last++ % kMaxCopies] = {copy, lane.group};
}

void commit_copies() { ++me().group; }

bool next_landing(unsigned groups_left, Copy& copy) {
  Lane& lane = me();
  if (lane.first == lane.last || lane.copies[lane.first % kMaxCopies].group + groups_left >= lane.group) return false;
  copy = lane.copies[lane.first++ % kMaxCopies];
  return true;
}

void run(dim3 grid, dim3 block, size_t dynamic_bytes, const Body& kernel) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  read_environment();
  if (size_t(block.x) * block.y * block.z - 1 >= kMaxThreads || block.x > 1024 || block.y > 1024 || block.z > 64)
    fail("emulator: kernel {}: a block of {} x {} x {} threads", symbols().name_of(kernel.kernel), block.x, block.y,
         block.z);
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff)
    fail("emulator: kernel {}: a grid of {} x {} x {} blocks", symbols().name_of(kernel.kernel), grid.x, grid.y,
         grid.z);
  if (dynamic_bytes > kMaxDynamicBytes)
    fail("emulator: kernel {}: {} bytes of dynamic shared memory", symbols().name_of(kernel.kernel), dynamic_bytes);
  const size_t blocks = size_t(grid.x) * grid.y * grid.z;
  if (!blocks) return;

  alignas(128) static unsigned char arena[kMaxDynamicBytes + kCanary];
  dynamic_smem = arena;
  block_dim = block;
  grid_dim = grid;
  body = kernel;
  threads = block.x * block.y * block.z;
  warp_count = (threads + kWarp - 1) / kWarp;
  rng.seed(seed);
  if (tsan()) host.tsan_fiber = __tsan_get_current_fiber();
  make_fibers();
  if (!free_count) reset_fibers();
  std::vector<uint32_t> block_order;
  if (order == Order::Shuffled) {
    block_order.resize(blocks);
    arrange(block_order.data(), unsigned(blocks));
  }

  struct End {
    ~End() {
      self = nullptr;
      if (tsan()) __tsan_acquire(&done_token);
    }
  } end;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t b = order == Order::Ascending ? i : order == Order::Descending ? blocks - 1 - i : block_order[i];
    prepare_block(grid, block, b, dynamic_bytes, i);
    Lane* first = next_thread();
    self = first;
    jump(host, fiber_of(*first));
    if (error) {
      // Threads that were waiting are given up; kernels own nothing that would need their destructors.
      for (unsigned k = 0; tsan() && k < threads; ++k) {  // in their names
        __tsan_switch_to_fiber(lanes[k].tsan_fiber, 1);
        __tsan_release(&done_token);
        __tsan_switch_to_fiber(host.tsan_fiber, 1);
      }
      reset_fibers();
      std::rethrow_exception(std::exchange(error, nullptr));
    }
    for (size_t k = 0; k < kCanary; ++k)
      if (arena[dynamic_bytes + k] != 0xff)
        fail("emulator: kernel {}, block {}: writes past its {} bytes of dynamic shared memory",
             symbols().name_of(body.kernel), b, dynamic_bytes);
  }
}

}  // namespace t2l::emu
