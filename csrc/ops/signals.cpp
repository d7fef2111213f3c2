// Signals: Python serves them on its main thread only, between two steps of its own, so a long call has to ask.
// The functions are looked up in the running process: the library is not linked against any version of Python.
#include "call.h"

#include <dlfcn.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/syscall.h>
#endif

namespace nhl {
namespace {

template <class Function>
Function* find(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

struct Python {
  int (*initialized)() = find<int()>("Py_IsInitialized");
  int (*ensure)() = find<int()>("PyGILState_Ensure");
  void (*release)(int) = find<void(int)>("PyGILState_Release");
  int (*check_signals)() = find<int()>("PyErr_CheckSignals");
  void (*fetch)(void**, void**, void**) = find<void(void**, void**, void**)>("PyErr_Fetch");
  void (*restore)(void*, void*, void*) = find<void(void*, void*, void*)>("PyErr_Restore");

  bool here() const { return initialized && ensure && release && check_signals && fetch && restore && initialized(); }
};

const Python& python() {
  static const Python functions;
  return functions;
}

bool on_main_thread() {
#ifdef __linux__
  return syscall(SYS_gettid) == getpid();
#else
  return true;  // elsewhere Python itself finds out
#endif
}

// Type, value and traceback; the main thread's alone.
struct Kept {
  void *type = nullptr, *value = nullptr, *traceback = nullptr;
};
Kept kept;

}  // namespace

bool python_stops() {
  if (!on_main_thread() || !python().here()) return false;
  const int state = python().ensure();
  const bool raised = python().check_signals() != 0;
  if (raised) python().fetch(&kept.type, &kept.value, &kept.traceback);
  python().release(state);
  return raised;
}

}  // namespace nhl

// Raises what python_stops() kept, if anything. To be called through ctypes.PyDLL, which looks for an exception.
extern "C" __attribute__((visibility("default"))) void nhl_fast_raise_kept() {
  nhl::Kept& kept = nhl::kept;
  if (kept.type != nullptr) nhl::python().restore(kept.type, kept.value, kept.traceback);
  kept = {};
}
