/* A TFLite external delegate for tests: it computes on the CPU, and fails in the ways vendors' delegates do, as told.
 *
 * It takes FULLY_CONNECTED (float, int8), ADD (float) and Edge TPU custom ops that stand for a FULLY_CONNECTED, and
 * leaves all else to the runtime. Its options:
 *
 *   take      all (default) | none
 *   wrong     step: the first output is a step (or 1.0) too great | zeros | constant | nan (float outputs only)
 *   fail      create | prepare | invoke | abort | segfault | hang | leak (a mebibyte each time)
 *   after     how many invocations of this process go well before the last five begin (default 0)
 *   recover   how many fail before invocations go well again (default: all)
 *   device    path of a file that must be there; else it cannot be created, and refuses every invocation, or
 *   unplugged abort | hang: does that instead of refusing
 *   orders    path of a file: a word that is found there is taken away, and obeyed. A failure happens once, the leak from
 *             then on, and so does computing wrongly
 *   chatter   how many bytes it writes to standard error in every invocation
 *   delay_us  how many microseconds an invocation sleeps
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tflite_abi.h"

enum { ADD = 0, FULLY_CONNECTED = 9, MAX_NODES = 64 };
static const char *const EDGETPU = "edgetpu-custom-op";

typedef struct {
  char take[16], wrong[16], fail[16], device[4096], unplugged[16], orders[4096];
  long after, recover, chatter, delay_us;
  long invocations, failures;
} Orders;

typedef struct {
  int code, inputs[3], output;
} Node;

typedef struct {
  Orders *orders;
  int count;
  Node nodes[MAX_NODES];
} Kernel;

static int is(const char *text, const char *word) { return strcmp(text, word) == 0; }

/* What it takes */

static const TfLiteTensor *tensor(const TfLiteContext *context, int index) {
  return index < 0 ? NULL : &context->tensors[index];
}

static int is_connected(const TfLiteRegistration *op) {
  return op->custom_name ? is(op->custom_name, EDGETPU) : op->builtin_code == FULLY_CONNECTED;
}

static int can_take(const TfLiteContext *context, const TfLiteNode *node, const TfLiteRegistration *op) {
  if (node->outputs->size != 1) return 0;
  const TfLiteTensor *output = tensor(context, node->outputs->data[0]);
  if (is_connected(op)) return output->type == kF32 || output->type == kI8;
  return !op->custom_name && op->builtin_code == ADD && output->type == kF32;
}

static TfLiteStatus look(TfLiteContext *context, int index, TfLiteNode **node, TfLiteRegistration **op) {
  return context->GetNodeAndRegistration(context, index, node, op);
}

static void *kernel_init(TfLiteContext *context, const char *buffer, size_t length) {
  (void)length;
  const TfLiteDelegateParams *params = (const TfLiteDelegateParams *)buffer;
  Kernel *kernel = calloc(1, sizeof *kernel);
  kernel->orders = params->delegate->data_;
  for (int i = 0; i < params->nodes_to_replace->size && kernel->count < MAX_NODES; i++) {
    TfLiteNode *node;
    TfLiteRegistration *op;
    if (look(context, params->nodes_to_replace->data[i], &node, &op) != kOk) continue;
    Node *mine = &kernel->nodes[kernel->count++];
    mine->code = is_connected(op) ? FULLY_CONNECTED : ADD;
    for (int k = 0; k < 3; k++) mine->inputs[k] = k < node->inputs->size ? node->inputs->data[k] : -1;
    mine->output = node->outputs->data[0];
  }
  return kernel;
}

static void kernel_free(TfLiteContext *context, void *kernel) {
  (void)context;
  free(kernel);
}

static TfLiteStatus kernel_prepare(TfLiteContext *context, TfLiteNode *node) {
  (void)context, (void)node;
  return kOk;
}

/* What it computes */

static float weight_scale(const TfLiteTensor *weights, int channel) {
  const TfLiteAffineQuantization *quantization = weights->quantization.params;
  return quantization->scale->data[quantization->scale->size > 1 ? channel : 0];
}

static int8_t clamp(long value) { return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value); }

/* y (rows, channels) = x (rows, width) times the weights (channels, width) transposed, plus the bias (channels). */
static void connect(const TfLiteContext *context, const Node *node) {
  const TfLiteTensor *x = tensor(context, node->inputs[0]), *y = tensor(context, node->output);
  const TfLiteTensor *weights = tensor(context, node->inputs[1]), *bias = tensor(context, node->inputs[2]);
  int width = weights->dims->data[1], channels = weights->dims->data[0];
  int rows = (int)(y->bytes / (y->type == kF32 ? sizeof(float) : 1)) / channels;
  for (int row = 0; row < rows; row++)
    for (int channel = 0; channel < channels; channel++) {
      int at = row * channels + channel;
      if (y->type == kF32) {
        float sum = bias ? ((const float *)bias->data)[channel] : 0;
        for (int i = 0; i < width; i++)
          sum += ((const float *)x->data)[row * width + i] * ((const float *)weights->data)[channel * width + i];
        ((float *)y->data)[at] = sum;
      } else {
        long sum = bias ? ((const int32_t *)bias->data)[channel] : 0;
        for (int i = 0; i < width; i++)
          sum += (((const int8_t *)x->data)[row * width + i] - x->params.zero_point) *
                 (long)((const int8_t *)weights->data)[channel * width + i];
        float scale = x->params.scale * weight_scale(weights, channel) / y->params.scale;
        ((int8_t *)y->data)[at] = clamp(lrintf((float)sum * scale) + y->params.zero_point);
      }
    }
}

static void add(const TfLiteContext *context, const Node *node) {
  const TfLiteTensor *a = tensor(context, node->inputs[0]), *b = tensor(context, node->inputs[1]);
  const TfLiteTensor *y = tensor(context, node->output);
  for (size_t i = 0; i < y->bytes / sizeof(float); i++)
    ((float *)y->data)[i] = ((const float *)a->data)[i] + ((const float *)b->data)[i];
}

static void spoil(const Orders *orders, const TfLiteTensor *y) {
  float *reals = y->data;
  int8_t *steps = y->data;
  if (is(orders->wrong, "zeros")) memset(y->data, 0, y->bytes);
  if (is(orders->wrong, "constant")) memset(y->data, 7, y->bytes);
  if (is(orders->wrong, "step") && y->type == kF32) reals[0] += 1;
  if (is(orders->wrong, "step") && y->type == kI8) steps[0] = clamp(steps[0] + 1L);
  if (is(orders->wrong, "nan") && y->type == kF32)
    for (size_t i = 0; i < y->bytes / sizeof(float); i++) reals[i] = NAN;
}

/* How it fails */

static void chat(long bytes) {
  for (; bytes > 0; bytes -= 64)
    fprintf(stderr, "%-63s\n", "faulty delegate: nothing to worry about");
}

static void leak(void) {
  void *lost = malloc(1 << 20);
  if (!lost) {
    fprintf(stderr, "terminate called after throwing an instance of 'std::bad_alloc'\n");
    abort();
  }
  memset(lost, 1, 1 << 20);
}

static void end(const char *how) {
  if (is(how, "abort")) {
    fprintf(stderr, "faulty delegate: transfer on endpoint 1 failed\n");
    abort();
  }
  if (is(how, "segfault")) *(volatile int *)8 = 1;
  if (is(how, "hang"))
    for (;;) pause();
  if (is(how, "leak")) leak();
}

static TfLiteStatus refuse(TfLiteContext *context, const char *why) {
  context->ReportError(context, "faulty delegate: %s", why);
  return kDelegateError;
}

static void hear(Orders *orders) {
  FILE *file = *orders->orders ? fopen(orders->orders, "r") : NULL;
  if (!file) return;
  char word[16] = "";
  if (fscanf(file, "%15s", word) != 1) *word = 0;
  fclose(file);
  unlink(orders->orders);
  int is_failure = is(word, "abort") || is(word, "segfault") || is(word, "hang") || is(word, "invoke") || is(word, "leak");
  strcpy(is_failure ? orders->fail : orders->wrong, word);
  orders->after = 0;
  orders->recover = is(word, "leak") ? 0 : orders->failures + 1;
}

static TfLiteStatus kernel_invoke(TfLiteContext *context, TfLiteNode *node) {
  const Kernel *kernel = node->user_data;
  Orders *orders = kernel->orders;
  chat(orders->chatter);
  usleep((useconds_t)orders->delay_us);
  if (*orders->device && access(orders->device, F_OK) != 0) {
    end(orders->unplugged);
    return refuse(context, "the device is gone");
  }
  hear(orders);
  if (orders->invocations++ >= orders->after && (!orders->recover || orders->failures < orders->recover)) {
    orders->failures++;
    end(orders->fail);
    if (is(orders->fail, "invoke")) return refuse(context, "invoke failed, as told");
  }
  for (int i = 0; i < kernel->count; i++) {
    (kernel->nodes[i].code == ADD ? add : connect)(context, &kernel->nodes[i]);
    spoil(orders, tensor(context, kernel->nodes[i].output));
  }
  return kOk;
}

/* What the runtime calls */

static TfLiteStatus delegate_prepare(TfLiteContext *context, TfLiteDelegate *delegate) {
  const Orders *orders = delegate->data_;
  if (is(orders->fail, "prepare")) return refuse(context, "prepare failed, as told");
  TfLiteIntArray *plan;
  if (context->GetExecutionPlan(context, &plan) != kOk) return kError;
  size_t bytes = sizeof(int) * (size_t)(plan->size + 1);
  TfLiteIntArray *all = malloc(bytes), *taken = malloc(bytes);
  memcpy(all, plan, bytes); /* the plan does not outlive the next call */
  taken->size = 0;
  for (int i = 0; i < all->size; i++) {
    TfLiteNode *node;
    TfLiteRegistration *op;
    if (look(context, all->data[i], &node, &op) == kOk && is(orders->take, "all") && can_take(context, node, op))
      taken->data[taken->size++] = all->data[i];
  }
  TfLiteRegistration kernel = {.init = kernel_init,
                               .free = kernel_free,
                               .prepare = kernel_prepare,
                               .invoke = kernel_invoke,
                               .custom_name = "FaultyDelegate",
                               .version = 1};
  TfLiteStatus status = kOk;
  if (taken->size) status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, taken, delegate);
  free(all);
  free(taken);
  return status;
}

static int obey(Orders *orders, const char *key, const char *value) {
  struct { const char *key; char *word; size_t room; } words[] = {
      {"take", orders->take, sizeof orders->take},
      {"wrong", orders->wrong, sizeof orders->wrong},
      {"fail", orders->fail, sizeof orders->fail},
      {"device", orders->device, sizeof orders->device},
      {"unplugged", orders->unplugged, sizeof orders->unplugged},
      {"orders", orders->orders, sizeof orders->orders},
  };
  struct { const char *key; long *number; } numbers[] = {
      {"after", &orders->after},
      {"recover", &orders->recover},
      {"chatter", &orders->chatter},
      {"delay_us", &orders->delay_us},
  };
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (is(key, words[i].key)) return snprintf(words[i].word, words[i].room, "%s", value) < (int)words[i].room;
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (is(key, numbers[i].key)) return *numbers[i].number = atol(value), 1;
  return 0;
}

__attribute__((visibility("default"))) TfLiteDelegate *tflite_plugin_create_delegate(
    char **keys, char **values, size_t count, void (*report_error)(const char *)) {
  Orders *orders = calloc(1, sizeof *orders);
  strcpy(orders->take, "all");
  for (size_t i = 0; i < count; i++)
    if (!obey(orders, keys[i], values[i])) {
      char message[128];
      snprintf(message, sizeof message, "faulty delegate: unknown option %s", keys[i]);
      if (report_error) report_error(message);
      free(orders);
      return NULL;
    }
  int is_there = !*orders->device || access(orders->device, F_OK) == 0;
  if (is(orders->fail, "create") && report_error) report_error("faulty delegate: create failed, as told");
  if (is(orders->fail, "create") || !is_there) { /* that the device is not there it does not say, as libedgetpu */
    free(orders);
    return NULL;
  }
  TfLiteDelegate *delegate = calloc(1, sizeof *delegate + 64); /* newer runtimes have more fields */
  delegate->data_ = orders;
  delegate->Prepare = delegate_prepare;
  delegate->flags = 1; /* allows dynamic tensors: the runtime does not prepare custom ops first, which it cannot */
  return delegate;
}

__attribute__((visibility("default"))) void tflite_plugin_destroy_delegate(TfLiteDelegate *delegate) {
  if (!delegate) return;
  free(delegate->data_);
  free(delegate);
}
