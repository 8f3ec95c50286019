// An LSTM layer over blocks of rows, per instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace drocc::cpu {

struct LstmArgs {
  const void* x;            // [T, B, I]
  const void* h_0;          // [B, H]
  const void* c_0;          // [B, H]
  const void* w_ih;         // [4 H, I]
  const void* w_hh;         // [4 H, H]
  const void* b_ih;         // [4 H] or null
  const void* b_hh;         // [4 H] or null
  void* hidden;             // [T, B, H]; not used by the backward
  void* cells;              // [T, B, H]
  void* gates;              // [T, B, 4 H]; the backward leaves gradients there
  const void* grad_hidden;  // [T, B, H]
  const void* grad_cell;    // [B, H] or null
  void* grad_x;             // [T, B, I]
  void* grad_h_0;           // [B, H]
  void* grad_c_0;           // [B, H]
  void* packed_ih;          // room for w_ih and w_hh in the order in which products read them
  void* packed_hh;
  int64_t steps;   // T
  int64_t batch;   // B
  int64_t inputs;  // I
  int64_t units;   // H
};

struct LstmKernels {
  // Elements that packed_ih and packed_hh need.
  int64_t (*packed_ih)(const LstmArgs&, bool backward);
  int64_t (*packed_hh)(const LstmArgs&, bool backward);
  void (*pack)(const LstmArgs&, bool backward);
  // Rows [begin, end) of the batch, through all steps.
  void (*forward)(const LstmArgs&, int64_t begin, int64_t end);
  void (*backward)(const LstmArgs&, int64_t begin, int64_t end);
};

struct LstmTable {
  LstmKernels of[2];  // float, double
};

DROCC_DECLARE_KERNELS(LstmTable, lstm_kernels)

}  // namespace drocc::cpu
