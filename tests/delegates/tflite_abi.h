/* As much of TFLite's C interface as an external delegate touches: its structs as they lie in memory from TFLite 2.14 to
 * LiteRT 2.3, with 32-bit and 64-bit pointers. The order of fields is that of tflite/core/c/common.h. */
#ifndef EDGED_TFLITE_ABI_H
#define EDGED_TFLITE_ABI_H
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
typedef enum { kOk = 0, kError = 1, kDelegateError = 2, kApplicationError = 3, kUnresolvedOps = 7, kCancelled = 8 } TfLiteStatus;
typedef enum { kF32 = 1, kI32 = 2, kU8 = 3, kI64 = 4, kI8 = 9 } TfLiteType;
typedef struct { int size; int data[]; } TfLiteIntArray;
typedef struct { int size; float data[]; } TfLiteFloatArray;
typedef struct { float scale; int32_t zero_point; } TfLiteQuantizationParams;
typedef struct { int type; void *params; } TfLiteQuantization;
typedef struct { TfLiteFloatArray *scale; TfLiteIntArray *zero_point; int32_t quantized_dimension; } TfLiteAffineQuantization;
typedef struct TfLiteTensor {
  int type; void *data; TfLiteIntArray *dims; TfLiteQuantizationParams params; int allocation_type;
  size_t bytes; const void *allocation; const char *name; struct TfLiteDelegate *delegate;
  int buffer_handle; bool data_is_stale; bool is_variable; TfLiteQuantization quantization;
  void *sparsity; const TfLiteIntArray *dims_signature;
} TfLiteTensor;                     /* sizeof matters: context->tensors is an array of these */
typedef struct TfLiteNode {
  TfLiteIntArray *inputs, *outputs, *intermediates, *temporaries;
  void *user_data, *builtin_data; const void *custom_initial_data; int custom_initial_data_size;
  struct TfLiteDelegate *delegate; bool might_have_side_effect;
} TfLiteNode;
struct TfLiteContext;
typedef struct TfLiteRegistration {
  void *(*init)(struct TfLiteContext *, const char *buffer, size_t length);
  void (*free)(struct TfLiteContext *, void *buffer);
  TfLiteStatus (*prepare)(struct TfLiteContext *, TfLiteNode *);
  TfLiteStatus (*invoke)(struct TfLiteContext *, TfLiteNode *);
  const char *(*profiling_string)(const struct TfLiteContext *, const TfLiteNode *);
  int32_t builtin_code; const char *custom_name; int version;
  void *registration_external; void *(*async_kernel)(struct TfLiteContext *, TfLiteNode *);
  uint64_t inplace_operator;
} TfLiteRegistration;               /* passed BY VALUE to ReplaceNodeSubsets...: size must match */
typedef struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(struct TfLiteContext *, TfLiteIntArray **);
  TfLiteTensor *tensors; void *impl_;
  TfLiteStatus (*ResizeTensor)(struct TfLiteContext *, TfLiteTensor *, TfLiteIntArray *);
  void (*ReportError)(struct TfLiteContext *, const char *msg, ...);
  TfLiteStatus (*AddTensors)(struct TfLiteContext *, int, int *);
  TfLiteStatus (*GetNodeAndRegistration)(struct TfLiteContext *, int, TfLiteNode **, TfLiteRegistration **);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(struct TfLiteContext *, TfLiteRegistration,
                                                        const TfLiteIntArray *, struct TfLiteDelegate *);
  int recommended_num_threads;      /* .. more fields follow, unused here */
} TfLiteContext;
typedef struct TfLiteDelegate {
  void *data_;
  TfLiteStatus (*Prepare)(TfLiteContext *, struct TfLiteDelegate *);
  TfLiteStatus (*CopyFromBufferHandle)(TfLiteContext *, struct TfLiteDelegate *, int, TfLiteTensor *);
  TfLiteStatus (*CopyToBufferHandle)(TfLiteContext *, struct TfLiteDelegate *, int, TfLiteTensor *);
  void (*FreeBufferHandle)(TfLiteContext *, struct TfLiteDelegate *, int *);
  int64_t flags; void *opaque_delegate_builder;
} TfLiteDelegate;
typedef struct { TfLiteDelegate *delegate; TfLiteIntArray *nodes_to_replace, *input_tensors, *output_tensors; } TfLiteDelegateParams;
#endif
