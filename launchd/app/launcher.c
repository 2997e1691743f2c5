/* The main executable of exod.app: runs exod inside this process, so that macOS judges this program.
 *
 * macOS ties a Local Network grant to the signature, the LC_UUID and the path of the executable of a process. So
 * this program has nothing in it that changes with an upgrade, and it never calls exec: it loads the Python
 * library and calls its main function. Which library and which environment stands in a file outside the bundle,
 * ~/Library/Application Support/exod/launcher.conf, written by `exoctl service install`:
 *
 *     library=/absolute/path/of/the/shared/library/of/Python
 *     python=/absolute/path/of/the/environment/bin/python3
 *
 * It always runs `python -P -m exod` with its own arguments after that: a grant for exod is no grant for whatever
 * else somebody would like to run. Errors are one line on standard error; the exit code is 78 (EX_CONFIG, as in
 * sysexits.h) where the file or what it names is not usable, else exod's own.
 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SETTINGS "/Library/Application Support/exod/launcher.conf"
#define CURE "; write it again with: exoctl service install\n"

enum {
  NOT_USABLE = 78,
  FIRST_OWN = 4, /* argv of Python: the environment's python, -P, -m, exod, then our own arguments */
};

typedef int (*python_main)(int, char **);

static char library[PATH_MAX], python[PATH_MAX];

/* HOME is what launchd was told; the account's entry is what there is without it. */
static const char *home_folder(void) {
  const char *home = getenv("HOME");
  if (home != NULL && home[0] == '/') return home;
  const struct passwd *account = getpwuid(getuid());
  return account != NULL ? account->pw_dir : NULL;
}

/* What others can write is not obeyed: it would run in our name. */
static int is_trusted(FILE *file, const char *path) {
  struct stat found;
  if (fstat(fileno(file), &found) != 0 || !S_ISREG(found.st_mode)) {
    fprintf(stderr, "exod.app: %s is not a file" CURE, path);
    return 0;
  }
  if ((found.st_uid != geteuid() && found.st_uid != 0) || (found.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    fprintf(stderr, "exod.app: %s can be written by others than its owner, or belongs to another user" CURE, path);
    return 0;
  }
  return 1;
}

/* A value is the rest of the line. 0 where the line has another key; -1 where the value is no absolute path. */
static int take_value(const char *line, const char *key, char value[PATH_MAX]) {
  size_t length = strlen(key);
  if (strncmp(line, key, length) != 0) return 0;
  if (line[length] != '/' || strlen(line + length) >= PATH_MAX) return -1;
  strcpy(value, line + length);
  return 1;
}

static int read_settings(const char *path) {
  char line[PATH_MAX + 16]; /* the longest key, the longest path, the line's end */
  FILE *file = fopen(path, "re");
  if (file == NULL) {
    fprintf(stderr, "exod.app: %s: %s" CURE, path, strerror(errno));
    return 0;
  }
  int good = is_trusted(file, path);
  while (good && fgets(line, sizeof line, file) != NULL) {
    line[strcspn(line, "\n")] = '\0';
    if (take_value(line, "library=", library) < 0 || take_value(line, "python=", python) < 0) {
      fprintf(stderr, "exod.app: %s: not an absolute path: %s" CURE, path, line);
      good = 0;
    }
  }
  fclose(file);
  if (good && (library[0] == '\0' || python[0] == '\0')) {
    fprintf(stderr, "exod.app: %s names no library or no python" CURE, path);
    good = 0;
  }
  return good;
}

static python_main load_python(void) {
  /* RTLD_GLOBAL: extension modules find Python's symbols in what is loaded, as they do in a python program. */
  void *handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
  void *found = handle != NULL ? dlsym(handle, "Py_BytesMain") : NULL;
  if (found == NULL) {
    fprintf(stderr, "exod.app: cannot use the Python library: %s" CURE, dlerror());
    return NULL;
  }
  if (access(python, X_OK) != 0) {
    fprintf(stderr, "exod.app: %s: %s: the environment that exod was installed in is gone" CURE, python,
            strerror(errno));
    return NULL;
  }
  python_main entry;
  memcpy(&entry, &found, sizeof entry); /* ISO C has no cast from an object to a function */
  return entry;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fputs("exod.app is started by launchd. In a terminal: exoctl service status\n", stderr);
    return NOT_USABLE;
  }
  const char *home = home_folder();
  char path[PATH_MAX];
  if (home == NULL || snprintf(path, sizeof path, "%s" SETTINGS, home) >= (int)sizeof path) {
    fputs("exod.app: this user has no home folder\n", stderr);
    return NOT_USABLE;
  }
  if (!read_settings(path)) return NOT_USABLE;
  python_main entry = load_python();
  if (entry == NULL) return NOT_USABLE;

  char **arguments = calloc((size_t)argc + FIRST_OWN, sizeof *arguments);
  if (arguments == NULL) {
    fputs("exod.app: no memory\n", stderr);
    return NOT_USABLE;
  }
  arguments[0] = python; /* Python finds its environment by this path */
  arguments[1] = "-P";   /* a folder called exod where it is started must not be taken for the package */
  arguments[2] = "-m";
  arguments[3] = "exod";
  memcpy(arguments + FIRST_OWN, argv + 1, (size_t)argc * sizeof *arguments); /* with the NULL at the end */
  return entry(argc - 1 + FIRST_OWN, arguments);
}
