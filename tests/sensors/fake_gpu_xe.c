/* Loaded before the C library, it answers the xe driver's question for memory regions from $FAKE_XE: "TOTAL USED ..."
 * in bytes, one pair a region of the card. The structures are those of the kernel's <drm/xe_drm.h>; as the kernel does,
 * it tells the size of the answer first and refuses any other. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct drm_xe_device_query {
    __u64 extensions;
    __u32 query, size;
    __u64 data, reserved[2];
};
struct drm_xe_mem_region {
    __u16 mem_class, instance;
    __u32 min_page_size;
    __u64 total_size, used, cpu_visible_size, cpu_visible_used, reserved[6];
};
struct drm_xe_query_mem_regions {
    __u32 num_mem_regions, pad;
    struct drm_xe_mem_region mem_regions[];
};
enum { MEM_REGIONS = 1, CLASS_SYSMEM = 0, CLASS_VRAM = 1, MOST = 4 };

int ioctl(int file, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if ((unsigned)request != (unsigned)_IOWR('d', 0x40, struct drm_xe_device_query))
        return syscall(SYS_ioctl, file, request, argument);
    struct drm_xe_device_query *query = argument;
    __u64 totals[MOST], used[MOST];
    unsigned count = 0;
    char *rest = getenv("FAKE_XE"), *after;
    while (count < MOST && (totals[count] = strtoull(rest, &after, 10), after != rest)) {
        used[count++] = strtoull(after, &rest, 10);
    }
    __u32 size = sizeof(struct drm_xe_query_mem_regions) + (count + 1) * sizeof(struct drm_xe_mem_region);
    if (query->query == MEM_REGIONS && query->size == 0) {
        query->size = size;
        return 0;
    }
    if (query->query != MEM_REGIONS || query->size != size || query->extensions) {
        errno = EINVAL;
        return -1;
    }
    struct drm_xe_query_mem_regions *answer = (void *)(uintptr_t)query->data;
    memset(answer, 0, size);
    answer->num_mem_regions = count + 1;
    answer->mem_regions[0] = (struct drm_xe_mem_region){.mem_class = CLASS_SYSMEM, .total_size = 1ull << 35, .used = 1};
    for (unsigned i = 0; i < count; i++)
        answer->mem_regions[i + 1] = (struct drm_xe_mem_region){
            .mem_class = CLASS_VRAM, .instance = i + 1, .min_page_size = 65536, .total_size = totals[i], .used = used[i],
            .cpu_visible_size = 1 << 28};
    return 0;
}
