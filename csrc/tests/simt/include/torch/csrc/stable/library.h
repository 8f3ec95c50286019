// Stands in for torch.
#pragma once

#include "../../../../torch.h"
