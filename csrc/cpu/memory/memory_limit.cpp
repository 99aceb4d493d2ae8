#include "memory_limit.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>

namespace snnfast::cpu {
namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

size_t times_page(size_t pages) { return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// The smallest limit of a group and of those above it. `group` begins with a slash. A container often cannot see its
// own group under the name in /proc: its limit is then at the mount itself.
size_t least_limit(const std::string& mount, std::string group, const char* file) {
  size_t least = kUnlimited;
  while (true) {
    size_t limit = 0;  // without a limit, the file says "max", which is no number
    if (std::ifstream(mount + group + "/" + file) >> limit) least = std::min(least, limit);
    if (group.empty()) return least;
    group.erase(group.rfind('/'));
  }
}

size_t room_under(int resource, size_t used) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

bool is_limited(int resource) { return room_under(resource, 0) != kUnlimited; }

}  // namespace

size_t memory_limit(const std::string& root) {
  const long pages = sysconf(_SC_PHYS_PAGES);
  size_t least = pages > 0 ? times_page(static_cast<size_t>(pages)) : 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  // A line has a number, controllers and a path: "0::/a/b" in version 2, "4:cpu,memory:/a/b" in version 1.
  for (std::string number, controllers, path;
       std::getline(groups, number, ':') && std::getline(groups, controllers, ':') && std::getline(groups, path);) {
    if (path.empty() || path[0] != '/') continue;
    if (controllers.empty()) least = std::min(least, least_limit(root + "/sys/fs/cgroup", path, "memory.max"));
    if (("," + controllers + ",").find(",memory,") != std::string::npos)
      least = std::min(least, least_limit(root + "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
  }
  return least;
}

size_t mappable_bytes() {
  if (!is_limited(RLIMIT_AS) && !is_limited(RLIMIT_DATA)) return kUnlimited;
  // Memory may be short here, so read the file without allocating any.
  char text[256] = "";
  const int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return 0;
  size_t pages[6];  // mapped, resident, shared, text, 0, data
  const char* at = text;
  for (size_t& number : pages) {
    while (*at == ' ') ++at;
    // sscanf of a new glibc is a symbol that an older one lacks.
    const auto [next, error] = std::from_chars(at, text + length, number);
    if (error != std::errc()) return 0;
    at = next;
  }
  return std::min(room_under(RLIMIT_AS, times_page(pages[0])), room_under(RLIMIT_DATA, times_page(pages[5])));
}

}  // namespace snnfast::cpu
