/* An NVML whose machine is the text file $FAKE_NVML_STATE, read at each call:
 *   gpu TOTAL USED LOAD CELSIUS NAME...      one line a GPU, in order
 *   process GPU compute|graphics PID BYTES
 *   error CALL GPU CODE                      GPU -1 means any
 * As with the real one, what was lost (code 15) stays lost until the session is ended and begun again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

struct gpu { unsigned long long total, used; unsigned load; int celsius; char name[96]; };
struct memory { unsigned long long total, free, used; };
struct utilization { unsigned gpu, memory; };
struct temperature { unsigned version, sensor; int celsius; };
struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static int sessions, lost;

static FILE *state(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    return path ? fopen(path, "r") : NULL;
}

static int error_of(const char *call, int gpu) {
    char line[256], name[64];
    int index, code, found = OK;
    FILE *file = state();
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "error %63s %d %d", name, &index, &code) == 3 && !strcmp(name, call) &&
            (index < 0 || index == gpu))
            found = code;
    if (file) fclose(file);
    return found;
}

static int check(const char *call, int gpu) {
    if (!sessions) return UNINITIALIZED;
    int code = lost ? GPU_IS_LOST : error_of(call, gpu);
    if (code == GPU_IS_LOST) lost = 1;
    return code;
}

static int find(int wanted, struct gpu *gpu) {
    char line[256];
    int count = 0;
    FILE *file = state();
    while (file && fgets(line, sizeof line, file)) {
        struct gpu seen;
        if (sscanf(line, "gpu %llu %llu %u %d %95[^\n]", &seen.total, &seen.used, &seen.load, &seen.celsius, seen.name) != 5)
            continue;
        if (count++ == wanted) *gpu = seen;
    }
    if (file) fclose(file);
    return count;
}

static int index_of(void *handle) { return (int)(size_t)handle - 1; }

void fake_reset(void) { sessions = lost = 0; }
int fake_sessions(void) { return sessions; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = error_of("init", -1);
    if (code == OK) sessions++;
    return code;
}
int nvmlShutdown(void) {
    if (!sessions) return UNINITIALIZED;
    if (--sessions == 0) lost = 0;
    return OK;
}
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "Fake error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = check("count", -1);
    if (code == OK) *count = find(-1, NULL);
    return code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int code = check("handle", index);
    *handle = (void *)(size_t)(index + 1);
    return code;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    struct gpu gpu;
    int code = check("name", index_of(handle));
    find(index_of(handle), &gpu);
    snprintf(name, size, "%s", gpu.name);
    return code;
}
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    struct gpu gpu;
    int code = check("memory", index_of(handle));
    find(index_of(handle), &gpu);
    *memory = (struct memory){gpu.total, gpu.total - gpu.used, gpu.used};
    return code;
}
int nvmlDeviceGetUtilizationRates(void *handle, struct utilization *rates) {
    struct gpu gpu;
    int code = check("utilization", index_of(handle));
    find(index_of(handle), &gpu);
    *rates = (struct utilization){gpu.load, 0};
    return code;
}
int nvmlDeviceGetTemperatureV(void *handle, struct temperature *temperature) {
    struct gpu gpu;
    int code = check("temperature_v", index_of(handle));
    if (temperature->version != 0x100000C) return INVALID_ARGUMENT;
    find(index_of(handle), &gpu);
    temperature->celsius = gpu.celsius;
    return code;
}
int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) {
    struct gpu gpu;
    int code = check("temperature", index_of(handle));
    find(index_of(handle), &gpu);
    *celsius = gpu.celsius;
    return code;
}

static int processes(const char *kind, void *handle, unsigned *count, struct process *list) {
    char line[256], name[64];
    unsigned found = 0;
    struct process process = {.gpu_instance = ~0u, .compute_instance = ~0u};
    int gpu, code = check(kind, index_of(handle));
    if (code != OK) return code;
    FILE *file = state();
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "process %d %63s %u %llu", &gpu, name, &process.pid, &process.bytes) == 4 &&
            gpu == index_of(handle) && !strcmp(name, kind)) {
            if (list && found < *count) list[found] = process;
            found++;
        }
    if (file) fclose(file);
    code = found > *count ? INSUFFICIENT_SIZE : OK;
    *count = found;
    return code;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *list) {
    return processes("compute", handle, count, list);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, struct process *list) {
    return processes("graphics", handle, count, list);
}
