// Just enough of an Objective-C runtime for metal-cpp to talk to: objects whose methods are C++ functions.
// Objects are never freed: the programs that use this live for seconds.

#pragma once

#include <string>
#include <unordered_map>

namespace fake_metal {

struct Type;

/* Where Objective-C has its `isa`. A type is an object too; its own `type` is null. */
struct Object {
  const Type* type{nullptr};
};

/* A class: its methods by selector, those of its objects and its own alike. */
struct Type : Object {
  std::string name;
  std::unordered_map<std::string, void*> methods;
};

/* The one type of that name, with these methods besides those it has. metal-cpp may look a type up before
 * its methods are defined. */
const Type* define(
    const std::string& name,
    const std::unordered_map<std::string, void*>& methods = {});

/* An implementation takes (self, selector, arguments...), as in Objective-C. */
template <typename F>
void* method(F* implementation) {
  return reinterpret_cast<void*>(implementation);
}

} // namespace fake_metal
