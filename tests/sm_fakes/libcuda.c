/* A CUDA driver for tests: enough of cuda.h for one process to count its SMs.
 *
 * FAKE_SMS is the whole GPU. A process is limited to its share where a fake daemon's pid file lies
 * in its pipe directory; cuInit then enters it into that daemon's list of clients.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int whole(void) {
    const char *set = getenv("FAKE_SMS");
    return set ? atoi(set) : 132;
}

static int in_pipe(char *path, size_t size, const char *name) {
    const char *pipe = getenv("CUDA_MPS_PIPE_DIRECTORY");
    if (!pipe)
        return 0;
    snprintf(path, size, "%s/%s", pipe, name);
    return 1;
}

static int served(void) {
    char path[512];
    return in_pipe(path, sizeof path, "nvidia-cuda-mps-control.pid") && access(path, R_OK) == 0;
}

int cuInit(unsigned flags) {
    char name[64], path[512];
    if (getenv("FAKE_CUINIT_FAILS"))
        return 100;
    snprintf(name, sizeof name, "client-%d", (int)getpid());
    if (served() && in_pipe(path, sizeof path, name)) {
        FILE *file = fopen(path, "w");
        if (file)
            fclose(file);
    }
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *percent = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    if (attribute != 16)
        return 1;
    *value = whole();
    if (served() && percent && !getenv("FAKE_SHARE_IGNORED"))
        *value = whole() * atoi(percent) / 100 / 2 * 2;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, "Fake GPU", size);
    return 0;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++)
        uuid[i] = (unsigned char)i;
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = NULL;
    return 0;
}
