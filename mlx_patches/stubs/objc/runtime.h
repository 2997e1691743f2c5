#pragma once
typedef struct objc_object {
  void* isa;
}* id;
typedef struct objc_class* Class;
typedef struct objc_selector* SEL;
typedef struct objc_object Protocol;
typedef signed char BOOL;
extern "C" {
SEL sel_registerName(const char* name);
Class objc_lookUpClass(const char* name);
Class object_getClass(id object);
Protocol* objc_getProtocol(const char* name);
void* class_getInstanceMethod(Class from, SEL selector);
}
