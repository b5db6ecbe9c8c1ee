/* GPUs that exist only in llama.cpp's registry: for dry runs, which reserve memory and compute nothing.

They follow ggml-cuda where memory depends on it: alignment, f16 copies of quantized keys and values, help with prompts for
weights in RAM, events for several batches at once, and pinned memory on the host.

cc -shared -fPIC -I <site-packages>/include fake_gpu.c <site-packages>/llama_cpp/lib/libggml-base.so -o fake_gpu.so
*/
#include "ggml-backend.h"
#include "ggml.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* the interfaces of ggml-backend-impl.h (API version 2), which the package does not carry */
typedef void (*any_t)(void);
struct ggml_backend_buffer_type {
    const char *(*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const struct ggml_tensor *);
    bool (*is_host)(ggml_backend_buffer_type_t);
    ggml_backend_dev_t device;
    void *context;
};
struct buffer_i {
    void (*free_buffer)(ggml_backend_buffer_t);
    void *(*get_base)(ggml_backend_buffer_t);
    any_t init_tensor, memset_tensor, set_tensor, get_tensor, set_tensor_2d, get_tensor_2d, cpy_tensor;
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    any_t reset;
};
ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t, struct buffer_i, void *, size_t);
struct ggml_backend {
    ggml_guid_t guid;
    const char *(*get_name)(ggml_backend_t);
    void (*free)(ggml_backend_t);
    any_t transfers[5];
    void (*synchronize)(ggml_backend_t);
    any_t plans[4], graph_compute, event_record, event_wait, graph_optimize;
    ggml_backend_dev_t device;
    void *context;
};
struct ggml_backend_event {
    ggml_backend_dev_t device;
    void *context;
};
struct ggml_backend_device {
    const char *(*get_name)(ggml_backend_dev_t);
    const char *(*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t *, size_t *);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, struct ggml_backend_dev_props *);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char *);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
    any_t buffer_from_host_ptr;
    bool (*supports_op)(ggml_backend_dev_t, const struct ggml_tensor *);
    bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
    bool (*offload_op)(ggml_backend_dev_t, const struct ggml_tensor *);
    ggml_backend_event_t (*event_new)(ggml_backend_dev_t);
    void (*event_free)(ggml_backend_dev_t, ggml_backend_event_t);
    any_t event_synchronize;
    ggml_backend_reg_t reg;
    void *context;
};
struct ggml_backend_reg {
    int api_version;
    const char *(*get_name)(ggml_backend_reg_t);
    size_t (*get_device_count)(ggml_backend_reg_t);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
    any_t get_proc_address;
    void *context;
};

enum { MOST = 8 };
static struct ggml_backend_buffer_type memory[MOST], pinned;
static struct ggml_backend_device device[MOST];
static struct ggml_backend_reg registry;
static char name[MOST][16];
static size_t count, total_bytes;

static size_t number_of(ggml_backend_dev_t dev) { return (size_t)(dev - device); }
static size_t pad(size_t size) { return (size + 127) / 128 * 128; }

static void *base(ggml_backend_buffer_t buffer) { (void)buffer; return NULL; }
static void clear(ggml_backend_buffer_t buffer, uint8_t value) { (void)buffer; (void)value; }
static ggml_backend_buffer_t alloc(ggml_backend_buffer_type_t type, size_t size) {
    struct buffer_i none = {.get_base = base, .clear = clear};
    if (size && type == &pinned) return ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (size) return NULL; /* there is no memory to compute with */
    return ggml_backend_buffer_init(type, none, NULL, 0);
}
static const char *memory_name(ggml_backend_buffer_type_t type) { return type == &pinned ? "Fake_Host" : name[type - memory]; }
static size_t alignment(ggml_backend_buffer_type_t type) { return type == &pinned ? 32 : 128; }
static size_t alloc_size(ggml_backend_buffer_type_t type, const struct ggml_tensor *tensor) {
    size_t size = ggml_nbytes(tensor);
    (void)type;
    if (tensor->op == GGML_OP_FLASH_ATTN_EXT) /* ggml_cuda_flash_attn_ext_get_alloc_size */
        for (int i = 1; i < 3; i++)
            if (tensor->src[i]->type != GGML_TYPE_F16) size = pad(size) + 2 * ggml_nelements(tensor->src[i]);
    if (ggml_is_quantized(tensor->type) && tensor->ne[0] % 512)
        size += ggml_row_size(tensor->type, 512 - tensor->ne[0] % 512);
    return size;
}
static bool yes(ggml_backend_buffer_type_t type) { (void)type; return true; }

static const char *backend_name(ggml_backend_t backend) { return name[number_of(backend->device)]; }
static void backend_free(ggml_backend_t backend) { free(backend); }
static void nothing(ggml_backend_t backend) { (void)backend; }
static ggml_backend_t init(ggml_backend_dev_t dev, const char *params) {
    static ggml_guid guid = {0xfa, 0xce};
    ggml_backend_t backend = calloc(1, sizeof *backend);
    (void)params;
    backend->guid = &guid;
    backend->get_name = backend_name;
    backend->free = backend_free;
    backend->synchronize = nothing;
    backend->device = dev;
    return backend;
}

static const char *device_name(ggml_backend_dev_t dev) { return name[number_of(dev)]; }
static const char *description(ggml_backend_dev_t dev) { (void)dev; return "no GPU"; }
static void sizes(ggml_backend_dev_t dev, size_t *free_bytes, size_t *all) { (void)dev; *free_bytes = *all = total_bytes; }
static enum ggml_backend_dev_type type_of(ggml_backend_dev_t dev) { (void)dev; return GGML_BACKEND_DEVICE_TYPE_GPU; }
static void props(ggml_backend_dev_t dev, struct ggml_backend_dev_props *found) {
    *found = (struct ggml_backend_dev_props){.name = device_name(dev), .description = description(dev),
        .memory_free = total_bytes, .memory_total = total_bytes, .type = GGML_BACKEND_DEVICE_TYPE_GPU,
        .caps = {.async = true, .host_buffer = true, .events = true}};
}
static ggml_backend_buffer_type_t own(ggml_backend_dev_t dev) { return &memory[number_of(dev)]; }
static ggml_backend_buffer_type_t host(ggml_backend_dev_t dev) { (void)dev; return &pinned; }
static bool supports_op(ggml_backend_dev_t dev, const struct ggml_tensor *op) { (void)dev; (void)op; return true; }
static bool supports_memory(ggml_backend_dev_t dev, ggml_backend_buffer_type_t type) { return type == own(dev); }
static bool helps(ggml_backend_dev_t dev, const struct ggml_tensor *op) {
    (void)dev;
    switch (op->op) {
    case GGML_OP_GET_ROWS: return false;
    case GGML_OP_MUL_MAT: return op->ne[1] >= 32;
    case GGML_OP_MUL_MAT_ID: case GGML_OP_ROPE: return op->ne[2] >= 32;
    default: return ggml_nrows(op) >= 32;
    }
}
static ggml_backend_event_t event_new(ggml_backend_dev_t dev) {
    ggml_backend_event_t event = calloc(1, sizeof *event);
    event->device = dev;
    return event;
}
static void event_free(ggml_backend_dev_t dev, ggml_backend_event_t event) { (void)dev; free(event); }

static const char *registry_name(ggml_backend_reg_t reg) { (void)reg; return "Fake"; }
static size_t device_count(ggml_backend_reg_t reg) { (void)reg; return count; }
static ggml_backend_dev_t device_at(ggml_backend_reg_t reg, size_t i) { (void)reg; return &device[i]; }

/* For ggml_backend_register, once a process. */
ggml_backend_reg_t fake_gpus(size_t n, size_t bytes_each) {
    count = n < MOST ? n : MOST;
    total_bytes = bytes_each;
    registry = (struct ggml_backend_reg){2, registry_name, device_count, device_at, NULL, NULL};
    pinned = (struct ggml_backend_buffer_type){memory_name, alloc, alignment, NULL, NULL, yes, &device[0], NULL};
    for (size_t i = 0; i < count; i++) {
        snprintf(name[i], sizeof name[i], "Fake%zu", i);
        memory[i] = (struct ggml_backend_buffer_type){memory_name, alloc, alignment, NULL, alloc_size, NULL, &device[i], NULL};
        device[i] = (struct ggml_backend_device){device_name, description, sizes, type_of, props, init, own, host, NULL,
            supports_op, supports_memory, helps, event_new, event_free, NULL, &registry, NULL};
    }
    return &registry;
}
