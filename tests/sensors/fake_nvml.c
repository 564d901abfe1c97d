/* An NVML whose machine is the text file $FAKE_NVML_STATE, looked at in each call and read when it was replaced:
 *   gpu UUID TOTAL USED LOAD CELSIUS NAME...         one line a GPU, in order
 *   process GPU compute|graphics PID BYTES INSTANCE  INSTANCE is that of MIG, or -1
 *   instance GPU PLACE ID TOTAL USED                 a MIG device; two of the same ID share that instance's memory
 *   reasons GPU MASK                                 why its clocks are slow
 *   error CALL GPU CODE                              GPU -1 means any
 *   slow CALL GPU MILLISECONDS                       it hangs for so long, or until the line is gone
 *   driver VERSION                                   one that is not VERSION, with which this was compiled, is refused
 * As with the real one, what was lost (code 15) stays lost until the session is ended and begun again. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 1
#endif
#define MANY 64

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15,
    VERSION_MISMATCH = 18
};

struct gpu { char uuid[80]; unsigned long long total, used; unsigned load; int celsius; char name[96]; };
struct instance { int gpu, place; unsigned id; unsigned long long total, used; };
struct held { int gpu; char kind[16]; unsigned pid; unsigned long long bytes; int instance; };
struct fault { char call[64]; int gpu, value; };
struct reasons { int gpu; unsigned long long mask; };

struct memory { unsigned long long total, free, used; };
struct utilization { unsigned gpu, memory; };
struct temperature { unsigned version, sensor; int celsius; };
struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static struct {
    struct gpu gpus[MANY];
    struct instance instances[MANY];
    struct held held[4 * MANY];
    struct fault errors[MANY], slow[MANY];
    unsigned long long reasons[MANY];
    int gpu_count, instance_count, held_count, error_count, slow_count, driver;
} machine;
static struct stat read_of;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int sessions, lost;

/* A handle is a GPU's index + 1, or MANY and above for a MIG device. */
static int index_of(void *handle) { return (int)(size_t)handle - 1; }
static struct instance *instance_of(void *handle) {
    return (size_t)handle < MANY ? NULL : &machine.instances[(size_t)handle - MANY];
}
static int gpu_of(void *handle) { return instance_of(handle) ? instance_of(handle)->gpu : index_of(handle); }

static void look(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat now;
    if (!path) {
        /* A test is over: no machine. */
        memset(&machine, 0, sizeof machine);
        machine.driver = VERSION;
        return;
    }
    if (stat(path, &now)) return;
    if (now.st_ino == read_of.st_ino && now.st_mtim.tv_sec == read_of.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == read_of.st_mtim.tv_nsec && now.st_size == read_of.st_size)
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    read_of = now;
    memset(&machine, 0, sizeof machine);
    machine.driver = VERSION;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        struct gpu gpu;
        struct instance instance;
        struct held held;
        struct fault fault;
        struct reasons reasons;
        if (sscanf(line, "gpu %79s %llu %llu %u %d %95[^\n]", gpu.uuid, &gpu.total, &gpu.used, &gpu.load, &gpu.celsius,
                   gpu.name) == 6)
            machine.gpus[machine.gpu_count++] = gpu;
        else if (sscanf(line, "instance %d %d %u %llu %llu", &instance.gpu, &instance.place, &instance.id,
                        &instance.total, &instance.used) == 5)
            machine.instances[machine.instance_count++] = instance;
        else if (sscanf(line, "process %d %15s %u %llu %d", &held.gpu, held.kind, &held.pid, &held.bytes,
                        &held.instance) == 5)
            machine.held[machine.held_count++] = held;
        else if (sscanf(line, "reasons %d %llu", &reasons.gpu, &reasons.mask) == 2 && reasons.gpu < MANY)
            machine.reasons[reasons.gpu] = reasons.mask;
        else if (sscanf(line, "error %63s %d %d", fault.call, &fault.gpu, &fault.value) == 3)
            machine.errors[machine.error_count++] = fault;
        else if (sscanf(line, "slow %63s %d %d", fault.call, &fault.gpu, &fault.value) == 3)
            machine.slow[machine.slow_count++] = fault;
        else
            sscanf(line, "driver %d", &machine.driver);
    }
    fclose(file);
}

static int value_of(struct fault *faults, int count, const char *call, int gpu) {
    int found = 0;
    for (int i = 0; i < count; i++)
        if (!strcmp(faults[i].call, call) && (faults[i].gpu < 0 || faults[i].gpu == gpu)) found = faults[i].value;
    return found;
}

/* Begins a call, with the lock held if it goes on: then `end` ends it. */
static int begin(const char *call, int gpu, int needs_session) {
    for (int waited = 0;; waited += 5) {
        pthread_mutex_lock(&lock);
        look();
        if (waited >= value_of(machine.slow, machine.slow_count, call, gpu)) break;
        pthread_mutex_unlock(&lock);
        usleep(5000);
    }
    int code = value_of(machine.errors, machine.error_count, call, gpu);
    if (machine.driver != VERSION) code = VERSION_MISMATCH;
    if (needs_session) {
        if (lost) code = GPU_IS_LOST;
        if (code == GPU_IS_LOST) lost = 1;
        if (!sessions) code = UNINITIALIZED;
    }
    if (code != OK) pthread_mutex_unlock(&lock);
    return code;
}
static int end(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}
static int begin_of(const char *call, void *handle) {
    int code = begin(call, gpu_of(handle), 1);
    if (code == OK && gpu_of(handle) >= machine.gpu_count) return end(INVALID_ARGUMENT);
    return code;
}

void fake_reset(void) {
    sessions = lost = 0;
    memset(&read_of, 0, sizeof read_of);
}
int fake_sessions(void) { return sessions; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = begin("init", -1, 0);
    if (code != OK) return code;
    sessions++;
    return end(OK);
}
int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    if (!sessions) return end(UNINITIALIZED);
    if (--sessions == 0) lost = 0;
    return end(OK);
}
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "Fake error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = begin("count", -1, 1);
    if (code != OK) return code;
    *count = machine.gpu_count;
    return end(OK);
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(size_t)(index + 1);
    int code = begin_of("handle", *handle);
    return code == OK ? end(OK) : code;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    int code = begin_of("uuid", handle);
    if (code != OK) return code;
    snprintf(uuid, size, "%s", machine.gpus[index_of(handle)].uuid);
    return end(OK);
}
int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    int code = begin_of("name", handle);
    if (code != OK) return code;
    snprintf(name, size, "%s", machine.gpus[index_of(handle)].name);
    return end(OK);
}
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    int code = begin_of(instance_of(handle) ? "instance_memory" : "memory", handle);
    if (code != OK) return code;
    struct gpu *gpu = &machine.gpus[gpu_of(handle)];
    struct instance *instance = instance_of(handle);
    unsigned long long total = instance ? instance->total : gpu->total, used = instance ? instance->used : gpu->used;
    *memory = (struct memory){total, total - used, used};
    return end(OK);
}
int nvmlDeviceGetUtilizationRates(void *handle, struct utilization *rates) {
    int code = begin_of("utilization", handle);
    if (code != OK) return code;
    *rates = (struct utilization){machine.gpus[index_of(handle)].load, 0};
    return end(OK);
}
static int reasons(const char *call, void *handle, unsigned long long *mask) {
    int code = begin_of(call, handle);
    if (code != OK) return code;
    *mask = machine.reasons[index_of(handle)];
    return end(OK);
}
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *mask) {
    return reasons("event_reasons", handle, mask);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *mask) {
    return reasons("throttle_reasons", handle, mask);
}
int nvmlDeviceGetTemperatureV(void *handle, struct temperature *temperature) {
    int code = begin_of("temperature_v", handle);
    if (code != OK) return code;
    if (temperature->version != 0x100000C) return end(INVALID_ARGUMENT);
    temperature->celsius = machine.gpus[index_of(handle)].celsius;
    return end(OK);
}
int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    int code = begin_of("temperature", handle);
    if (code != OK) return code;
    *celsius = machine.gpus[index_of(handle)].celsius;
    return end(OK);
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    int code = begin_of("mig", handle);
    if (code != OK) return code;
    *count = 0;
    for (int i = 0; i < machine.instance_count; i++)
        if (machine.instances[i].gpu == index_of(handle)) *count = 7;
    return end(OK);
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned place, void **instance) {
    int code = begin_of("mig_handle", handle);
    if (code != OK) return code;
    for (int i = 0; i < machine.instance_count; i++)
        if (machine.instances[i].gpu == index_of(handle) && machine.instances[i].place == (int)place) {
            *instance = (void *)(size_t)(MANY + i);
            return end(OK);
        }
    return end(NOT_FOUND);
}
int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
    int code = begin_of("instance", handle);
    if (code != OK) return code;
    *id = instance_of(handle)->id;
    return end(OK);
}

static int processes(const char *kind, void *handle, unsigned *count, struct process *list) {
    char call[32];
    struct instance *instance = instance_of(handle);
    snprintf(call, sizeof call, "%s%s", instance ? "instance_" : "", kind);
    int code = begin_of(call, handle);
    if (code != OK) return code;
    unsigned found = 0;
    for (int i = 0; i < machine.held_count; i++) {
        struct held *held = &machine.held[i];
        if (held->gpu != gpu_of(handle) || strcmp(held->kind, kind)) continue;
        if (instance && held->instance != (int)instance->id) continue;
        if (list && found < *count)
            list[found] = (struct process){held->pid, held->bytes, held->instance, held->instance < 0 ? ~0u : 0};
        found++;
    }
    code = found > *count ? INSUFFICIENT_SIZE : OK;
    *count = found;
    return end(code);
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, struct process *list) {
    return processes("compute", handle, count, list);
}
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *handle, unsigned *count, struct process *list) {
    return processes("graphics", handle, count, list);
}
/* An older driver lacks these: error compute_v3 and graphics_v3. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *list) {
    int code = begin_of("compute_v3", handle);
    return code == OK && end(OK) == OK ? processes("compute", handle, count, list) : code;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, struct process *list) {
    int code = begin_of("graphics_v3", handle);
    return code == OK && end(OK) == OK ? processes("graphics", handle, count, list) : code;
}
