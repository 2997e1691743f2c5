// The message sending of the fake Objective-C runtime. x86-64 only, as metal-cpp is on Linux.

#include "objc.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>

#include <objc/message.h>
#include <objc/runtime.h>

namespace fake_metal {

namespace {

Object* self_of(Object* self, SEL) {
  return self;
}

Object* nothing(Object*, SEL) {
  return nullptr;
}

Object* make(Type* type, SEL) {
  return new Object{type};
}

/* What every object and type answers. */
const Type* root() {
  static const Type* type = define(
      "NSObject",
      {{"alloc", method(make)},
       {"init", method(self_of)},
       {"retain", method(self_of)},
       {"autorelease", method(self_of)},
       {"release", method(nothing)},
       {"respondsToSelector:", method(nothing)},
       {"methodSignatureForSelector:", method(nothing)},
       {"setLabel:", method(nothing)}});
  return type;
}

} // namespace

const Type* define(
    const std::string& name,
    const std::unordered_map<std::string, void*>& methods) {
  static std::mutex mutex;
  static auto* types = new std::unordered_map<std::string, Type*>;
  std::lock_guard lock(mutex);
  auto& type = (*types)[name];
  if (!type) {
    type = new Type;
    type->name = name;
  }
  type->methods.insert(methods.begin(), methods.end());
  return type;
}

} // namespace fake_metal

extern "C" {

void* fake_metal_find(fake_metal::Object* self, const char* selector) {
  using namespace fake_metal;
  if (!self) {
    return method(nothing); // as a message to nil
  }
  auto* type = self->type ? self->type : static_cast<const Type*>(self);
  for (auto* holder : {type, root()}) {
    auto it = holder->methods.find(selector);
    if (it != holder->methods.end()) {
      return it->second;
    }
  }
  std::fprintf(stderr, "fake Metal: %s has no %s\n", type->name.c_str(), selector);
  std::abort();
}

SEL sel_registerName(const char* name) {
  static std::mutex mutex;
  static auto* names = new std::set<std::string>;
  std::lock_guard lock(mutex);
  return reinterpret_cast<SEL>(
      const_cast<char*>(names->insert(name).first->c_str()));
}

Class objc_lookUpClass(const char* name) {
  return reinterpret_cast<Class>(
      const_cast<fake_metal::Type*>(fake_metal::define(name)));
}

Protocol* objc_getProtocol(const char*) {
  return nullptr;
}

Class object_getClass(id) {
  return nullptr;
}

void* class_getInstanceMethod(Class, SEL) {
  return nullptr;
}

void objc_msgSend_fpret() {
  std::abort();
}

void objc_msgSend_stret() {
  std::abort();
}

} // extern "C"

// Finds the implementation for (rdi, rsi) and jumps to it with every argument as it came.
asm(R"(
  .text
  .globl objc_msgSend
objc_msgSend:
  push %rbp
  mov %rsp, %rbp
  sub $192, %rsp
  mov %rdi, 0(%rsp)
  mov %rsi, 8(%rsp)
  mov %rdx, 16(%rsp)
  mov %rcx, 24(%rsp)
  mov %r8, 32(%rsp)
  mov %r9, 40(%rsp)
  mov %rax, 48(%rsp)
  movups %xmm0, 64(%rsp)
  movups %xmm1, 80(%rsp)
  movups %xmm2, 96(%rsp)
  movups %xmm3, 112(%rsp)
  movups %xmm4, 128(%rsp)
  movups %xmm5, 144(%rsp)
  movups %xmm6, 160(%rsp)
  movups %xmm7, 176(%rsp)
  call fake_metal_find@PLT
  mov %rax, %r11
  mov 0(%rsp), %rdi
  mov 8(%rsp), %rsi
  mov 16(%rsp), %rdx
  mov 24(%rsp), %rcx
  mov 32(%rsp), %r8
  mov 40(%rsp), %r9
  mov 48(%rsp), %rax
  movups 64(%rsp), %xmm0
  movups 80(%rsp), %xmm1
  movups 96(%rsp), %xmm2
  movups 112(%rsp), %xmm3
  movups 128(%rsp), %xmm4
  movups 144(%rsp), %xmm5
  movups 160(%rsp), %xmm6
  movups 176(%rsp), %xmm7
  leave
  jmp *%r11
)");
